// What the page takes of d3: a selection to call the flamegraph on, and the flamegraph.
export { select } from "d3-selection";
export { default as flamegraph } from "d3-flame-graph";
