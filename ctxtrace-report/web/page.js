// Fills the parts of the page that are only text, and starts all other parts.

function fillTop() {
  byId("subject").textContent = data.subject;
  byId("verdict").textContent = data.verdict;
  byId("setting").textContent = data.setting.join(" · ");
  byId("alerts").append(...data.alerts.map(({ text, is_bad }) => make("p", { class: is_bad ? "alert" : "alert mild" }, text)));
  byId("facts").append(...data.facts.map((fact) => make("div", { title: fact.help },
    make("dt", {}, fact.label), make("dd", {}, fact.value))));
}

function fillTrust() {
  let last = "";
  for (const { label, text, is_bad } of data.trust) {
    byId("statements").append(make("dt", {}, label === last ? "" : label), make("dd", { class: is_bad ? "bad" : null }, text));
    last = label;
  }
  byId("licences").textContent = byId("licences-text").textContent;
}

initTheme();
fillTop();
fillLedger();
fillLatency();
fillTimeline();
fillFlames();
fillTables();
fillTrust();
