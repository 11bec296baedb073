// The page: asks for what there is now and then, and shows it. Text from outside is only ever put in
// as text.

import { draw, element } from "./map.js";

const LOOK = 2000; // ms
const HISTORY = 30; // looks
const MOST_ROWS = 500;
const MOST_EVENTS = 200;

const $ = (id) => document.getElementById(id);
const state = { overview: null, sort: "bytes", chosen: null, history: new Map(), next: 0, explaining: 0 };

function cell(text, ...classes) {
  const made = document.createElement("td");
  if (text instanceof Node) made.append(text);
  else made.textContent = text;
  made.classList.add(...classes);
  return made;
}

function row(...cells) {
  const made = document.createElement("tr");
  made.append(...cells);
  return made;
}

function short(value, base = 1000) {
  const units = ["", "K", "M", "G", "T"];
  let at = 0;
  while (value >= base && at < units.length - 1) { value /= base; at += 1; }
  return `${value < 10 && value % 1 ? value.toFixed(1) : Math.round(value)}${units[at]}`;
}

async function ask(path) {
  const answer = await fetch(path, { cache: "no-store" });
  const said = await answer.json();
  if (!answer.ok) throw new Error([said.error, said.hint].filter(Boolean).join(" "));
  return said;
}

function spark(values) {
  const svg = element("svg", { class: "spark", viewBox: "0 0 100 20", preserveAspectRatio: "none", "aria-hidden": "true" });
  const most = Math.max(1, ...values);
  const points = values.map((value, at) => `${(at * 100) / (HISTORY - 1)},${19 - (18 * value) / most}`);
  svg.append(element("polyline", { points: points.join(" ") }));
  return svg;
}

function remember(services) {
  const kept = new Map();
  for (const service of services) {
    const before = state.history.get(service.id) ?? [];
    kept.set(service.id, [...before, service.bytes].slice(-HISTORY));
  }
  state.history = kept;
}

function measure(service) {
  return state.sort === "endpoints" ? service.endpoints.length : service[state.sort];
}

function arranged() {
  const wanted = $("wanted").value.trim().toLowerCase();
  const matches = (service) => {
    const texts = [service.name, ...service.addresses, ...service.endpoints.flatMap((e) => [e.endpoint, e.name])];
    return texts.some((text) => text.toLowerCase().includes(wanted));
  };
  const found = state.overview.services.filter((service) => !wanted || matches(service));
  const byName = (a, b) => a.name.localeCompare(b.name) || a.family.localeCompare(b.family);
  if (state.sort === "name") return found.sort(byName);
  return found.sort((a, b) => measure(b) - measure(a) || byName(a, b));
}

function showServices() {
  const found = arranged();
  const rows = found.slice(0, MOST_ROWS).map((service) => {
    const serving = service.endpoints.filter((endpoint) => endpoint.serving).length;
    const made = row(
      cell(`${service.name} ${service.protocol}${service.family}`),
      cell(service.addresses.join(", "), "addresses"),
      cell(String(serving), "number", ...(serving ? [] : ["bad"])),
      cell(short(service.live), "number"),
      cell(service.connections.toFixed(1), "number"),
      cell(short(service.packets), "number"),
      cell(short(service.bytes, 1024), "number"),
      cell(spark(state.history.get(service.id) ?? [])),
    );
    made.tabIndex = 0;
    made.dataset.id = service.id;
    made.setAttribute("aria-selected", String(service.id === state.chosen));
    return made;
  });
  const body = $("services").tBodies[0];
  const focused = document.activeElement?.dataset?.id;
  body.replaceChildren(...rows);
  if (focused) body.querySelector(`tr[data-id="${focused}"]`)?.focus();
  $("more").hidden = found.length <= MOST_ROWS;
  $("more").textContent = `${found.length - MOST_ROWS} more; find them by name`;
  for (const button of document.querySelectorAll("[data-sort]")) {
    if (button.dataset.sort === state.sort) button.parentNode.setAttribute("aria-sort", "descending");
    else button.parentNode.removeAttribute("aria-sort");
  }
}

function showReasons() {
  const reasons = [...state.overview.reasons].sort((a, b) => b.rate - a.rate || b.total - a.total);
  const rows = reasons.map((reason) => row(
    cell(reason.reason), cell(reason.verdict, reason.verdict), cell(reason.rate.toFixed(1), "number"),
    cell(short(reason.total), "number"), cell(reason.sentence),
  ));
  $("reasons").tBodies[0].replaceChildren(...rows);
}

function showDetail() {
  const service = state.overview.services.find((one) => one.id === state.chosen);
  $("detail").hidden = !service;
  if (!service) return;
  $("detail-title").textContent = `${service.name} ${service.protocol}${service.family}, ${service.algorithm}`;
  const rows = service.endpoints.map((endpoint) => row(
    cell(endpoint.endpoint), cell(endpoint.name), cell(endpoint.here ? "this node" : endpoint.node),
    cell(endpoint.serving ? "yes" : "no", endpoint.serving ? "good" : "odd"), cell(short(endpoint.flows), "number"),
  ));
  $("endpoints").tBodies[0].replaceChildren(...rows);
}

function paragraph(text, ...classes) {
  const made = document.createElement("p");
  made.textContent = text;
  made.classList.add(...classes);
  return made;
}

function list(items) {
  const made = document.createElement("ul");
  for (const [text, kind] of items) {
    const item = document.createElement("li");
    item.textContent = text;
    item.classList.add(kind);
    made.append(item);
  }
  return made;
}

function* sentences(explained) {
  for (const note of explained.notes) yield paragraph(note, "odd");
  for (const port of explained.ports) {
    yield paragraph(`${port.name.text}`);
    for (const warning of port.warnings) yield paragraph(warning, "odd");
    for (const group of port.groups) {
      const used = group.endpoints.filter((endpoint) => endpoint.used).length;
      const called = group.addresses.map((address) => address.endpoint).join(", ");
      yield paragraph(`${called}: policy ${group.policy}, ${used} of ${group.endpoints.length} endpoints used.`);
      yield list(group.endpoints.map((endpoint) => {
        const then = endpoint.if_ready ? `; if it were ready, ${endpoint.if_ready}` : "";
        const who = endpoint.pod ? `${endpoint.endpoint}, ${endpoint.pod}` : endpoint.endpoint;
        return [`${who} on ${endpoint.node || "no node"}: ${endpoint.why}${then}`, endpoint.used ? "good" : "odd"];
      }));
      if (group.programmed === false) yield paragraph("The kernel has something else: lbctl verify says what.", "bad");
    }
  }
}

async function explain() {
  const service = state.overview?.services.find((one) => one.id === state.chosen);
  if (!service) return;
  const number = ++state.explaining;
  $("explained").replaceChildren(paragraph("asking…", "hint"));
  const query = new URLSearchParams({ service: service.service, from: $("from").value });
  let found;
  try {
    found = [...sentences(await ask(`api/explain?${query}`))];
  } catch (error) {
    found = [paragraph(error.message, "bad")];
  }
  if (number === state.explaining) $("explained").replaceChildren(...found);
}

function choose(id) {
  state.chosen = id;
  showServices();
  showDetail();
  explain();
}

// What is known of a pod without a name.
function on(end) {
  return end.kind === "pod" ? ` (pod on ${end.node})` : "";
}

function told(event) {
  const service = event.service ? event.service.text.split("/").slice(0, 2).join("/") : event.address;
  const side = (end) => end ? end.name || (end.address ? `${end.address}:${end.port}${on(end)}` : "") : "";
  const made = row(
    cell(event.time.slice(11, 23)), cell(event.verdict, event.verdict), cell(event.protocol),
    cell(side(event.client)), cell(service), cell(side(event.backend)), cell(event.reason),
  );
  made.title = event.explanation;
  return made;
}

function showEvents(recent) {
  const body = $("events").tBodies[0];
  for (const event of recent.events) body.prepend(told(event));
  while (body.rows.length > MOST_EVENTS) body.lastChild.remove();
  $("lost").textContent = [`${recent.lost} lost`, recent.problem].filter(Boolean).join("; ");
  state.next = recent.next;
}

async function look() {
  try {
    const [overview, recent] = await Promise.all([ask("api/overview"), ask(`api/events?after=${state.next}`)]);
    if (!state.overview || overview.time !== state.overview.time) {
      state.overview = overview;
      remember(overview.services);
      $("node").textContent = overview.node;
      document.title = `lbctl ${overview.node}`;
      $("warnings").hidden = !overview.warnings.length;
      $("warnings").replaceChildren(...list(overview.warnings.map((text) => [text, "odd"])).childNodes);
      showServices();
      showReasons();
      showDetail();
      draw($("map"), overview.edges);
    }
    showEvents(recent);
    $("state").textContent = `${overview.ready ? "ready" : "not ready"}, ${new Date(overview.time * 1000).toLocaleTimeString()}`;
    $("state").className = overview.ready ? "" : "bad";
  } catch (error) {
    $("state").textContent = `nothing new: ${error.message}`;
    $("state").className = "bad";
  }
  setTimeout(look, LOOK);
}

$("wanted").addEventListener("input", () => state.overview && showServices());
$("from").addEventListener("change", explain);
$("close").addEventListener("click", () => choose(null));
document.addEventListener("keydown", (event) => event.key === "Escape" && state.chosen !== null && choose(null));
document.querySelector("#services thead").addEventListener("click", (event) => {
  const sort = event.target.dataset.sort;
  if (sort) { state.sort = sort; showServices(); }
});
for (const kind of ["click", "keydown"]) {
  $("services").tBodies[0].addEventListener(kind, (event) => {
    const chosen = event.target.closest("tr");
    if (chosen && (kind === "click" || event.key === "Enter")) choose(Number(chosen.dataset.id));
  });
}
look();
