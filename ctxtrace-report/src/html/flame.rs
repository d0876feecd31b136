//! Stacks as a tree of bounded size, for a flamegraph that can be zoomed.

use ctxtrace_format::sums::add;
use std::collections::HashMap;

use serde::Serialize;

use crate::printable;
use ctxtrace_analysis::symbolize::stacks::Resolved;
use ctxtrace_format::symbols::FrameKind;

/// Maximum number of frames of a flamegraph: more than the eye can distinguish, and few enough to be drawn at once. The smallest
/// frames beyond it are left out and counted.
const MOST_NODES: usize = 6_000;

/// A tree of frames.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Tree {
    /// The distinct frames: the number of the kind, and the name.
    names: Vec<(u8, String)>,
    /// Four numbers for each frame of the tree: depth, index of its name, count, and nanoseconds. A frame comes before the frames
    /// that it called.
    nodes: Vec<u64>,
    /// Sum of the counts of all stacks.
    count: u64,
    /// Sum of the times of all stacks, in nanoseconds.
    ns: u64,
    /// Number of frames that were too small to be in the tree.
    left_out: u64,
}

#[derive(Default)]
struct Node {
    name: usize,
    children: Vec<usize>,
    count: u64,
    ns: u64,
}

impl Tree {
    /// Makes the tree of these stacks; `None` if there are no frames.
    pub(super) fn new(resolved: &Resolved) -> Option<Self> {
        Self::bounded(resolved, MOST_NODES)
    }

    fn bounded(resolved: &Resolved, most: usize) -> Option<Self> {
        let mut names: Vec<(u8, String)> = Vec::new();
        let mut name_of: HashMap<(u8, String), usize> = HashMap::new();
        let mut child_of: HashMap<(usize, usize), usize> = HashMap::new();
        let mut nodes = vec![Node::default()];
        for stack in &resolved.stacks {
            let mut at = 0;
            add(&mut nodes[0].count, stack.count);
            add(&mut nodes[0].ns, stack.ns);
            for frame in &stack.frames {
                let key = (kind(frame.kind), printable(&frame.name));
                let name = *name_of.entry(key).or_insert_with_key(|key| {
                    names.push(key.clone());
                    names.len() - 1
                });
                at = match child_of.get(&(at, name)) {
                    Some(&child) => child,
                    None => {
                        let child = nodes.len();
                        nodes.push(Node {
                            name,
                            ..Node::default()
                        });
                        nodes[at].children.push(child);
                        child_of.insert((at, name), child);
                        child
                    }
                };
                add(&mut nodes[at].count, stack.count);
                add(&mut nodes[at].ns, stack.ns);
            }
        }
        if nodes.len() == 1 {
            return None;
        }
        let threshold = threshold(&nodes, most);
        let mut tree = Self {
            names,
            nodes: Vec::new(),
            count: nodes[0].count,
            ns: nodes[0].ns,
            left_out: 0,
        };
        let mut to_visit: Vec<(u64, usize)> = nodes[0].children.iter().rev().map(|&child| (0, child)).collect();
        let mut shown = 0;
        while let Some((depth, index)) = to_visit.pop() {
            let node = &nodes[index];
            // A frame is never larger than its caller, so the frames that it called are below the threshold too.
            if share(node, &nodes[0]) < threshold {
                continue;
            }
            shown += 1;
            tree.nodes.extend([depth, node.name as u64, node.count, node.ns]);
            to_visit.extend(node.children.iter().rev().map(|&child| (depth + 1, child)));
        }
        tree.left_out = (nodes.len() - 1 - shown) as u64;
        Some(tree)
    }
}

/// The share of a frame in the whole tree (0 to 1), by count or by time, whichever is larger.
fn share(node: &Node, root: &Node) -> f64 {
    let of = |part: u64, whole: u64| part as f64 / whole.max(1) as f64;
    of(node.count, root.count).max(of(node.ns, root.ns))
}

/// The share below which frames are left out.
fn threshold(nodes: &[Node], most: usize) -> f64 {
    if nodes.len() - 1 <= most {
        return 0.0;
    }
    let mut shares: Vec<f64> = nodes[1..].iter().map(|node| share(node, &nodes[0])).collect();
    shares.sort_by(|a, b| b.total_cmp(a));
    // Just above the share of the first frame beyond the maximum. Frames that are equal to it are all left out, so that the
    // maximum holds.
    shares[most].next_up()
}

fn kind(kind: FrameKind) -> u8 {
    match kind {
        FrameKind::Doing => 0,
        FrameKind::Thread => 1,
        FrameKind::User => 2,
        FrameKind::Inlined => 3,
        FrameKind::Kernel => 4,
        FrameKind::Reason => 5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ctxtrace_analysis::symbolize::stacks::ResolvedStack;
    use ctxtrace_format::symbols::Frame;

    /// Parses stacks: `a;b;c 3 90` is a stack that was recorded three times, with 90 ns in total.
    fn resolved(lines: &[&str]) -> Resolved {
        let stack = |line: &&str| {
            let mut words = line.split(' ');
            let mut next = || words.next().expect("a line has a stack and two numbers");
            let frames = next().split(';').map(|name| Frame {
                kind: FrameKind::User,
                name: name.into(),
            });
            ResolvedStack {
                frames: frames.collect(),
                count: next().parse().expect("the field is a number"),
                ns: next().parse().expect("the field is a number"),
            }
        };
        Resolved {
            stacks: lines.iter().map(stack).collect(),
            ..Resolved::default()
        }
    }

    /// The frames of the tree as lines, indented by depth.
    fn shown(tree: &Tree) -> Vec<String> {
        let line = |node: &[u64]| {
            let indent = " ".repeat(node[0] as usize);
            format!("{indent}{} {} {}", tree.names[node[1] as usize].1, node[2], node[3])
        };
        tree.nodes.chunks(4).map(line).collect()
    }

    #[test]
    fn stacks_share_what_they_have_in_common() {
        let tree = Tree::new(&resolved(&[
            "a 1 5",
            "a;b;c 2 20",
            "a;b;d 3 30",
            "e;b 4 40",
            "a;b;c 1 1",
        ]))
        .expect("there are frames");
        assert_eq!(
            shown(&tree),
            ["a 7 56", " b 6 51", "  c 3 21", "  d 3 30", "e 4 40", " b 4 40"]
        );
        assert_eq!((tree.count, tree.ns, tree.left_out), (11, 96, 0));
        assert_eq!(tree.names.len(), 5, "each name is stored once");
    }

    #[test]
    fn the_smallest_frames_are_left_out() {
        let lines: Vec<String> = (1..=50).map(|n| format!("a;f{n} {n} 0")).collect();
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let tree = Tree::bounded(&resolved(&lines), 10).expect("there are frames");
        assert_eq!((tree.nodes.len() / 4, tree.left_out), (10, 41));
        assert_eq!(
            shown(&tree)[0],
            "a 1275 0",
            "a frame includes the frames that were left out below it"
        );
        assert!(shown(&tree).contains(&" f50 50 0".to_owned()));
    }

    #[test]
    fn many_equal_frames_do_not_break_the_bound() {
        let lines: Vec<String> = (1..=50).map(|n| format!("f{n} 1 1")).collect();
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        assert_eq!(
            Tree::bounded(&resolved(&lines), 10)
                .expect("there are frames")
                .nodes
                .len(),
            0
        );
    }

    #[test]
    fn nothing_has_no_tree() {
        assert_eq!(Tree::new(&Resolved::default()), None);
    }
}
