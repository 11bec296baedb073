// The map of who talks to what: three columns, and a line for every pair that has live flows.

const SVG = "http://www.w3.org/2000/svg";
const ROW = 22;
const COLUMNS = [
  { key: "client", x: 8, anchor: "start", title: "Clients" },
  { key: "service", x: 440, anchor: "middle", title: "Services" },
  { key: "backend", x: 872, anchor: "end", title: "Endpoints" },
];
const WIDTH = 880;
const MOST = 60; // of each column

export function element(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

// The names of a column, those with the most flows first, and how many flows each has.
function tally(edges, key) {
  const sums = new Map();
  for (const edge of edges) sums.set(edge[key], (sums.get(edge[key]) ?? 0) + edge.flows);
  return [...sums].sort((a, b) => b[1] - a[1] || a[0].localeCompare(b[0]));
}

function joined(edges, from, to) {
  const sums = new Map();
  for (const edge of edges) {
    const pair = JSON.stringify([edge[from], edge[to]]);
    sums.set(pair, (sums.get(pair) ?? 0) + edge.flows);
  }
  return [...sums].map(([pair, flows]) => [...JSON.parse(pair), flows]);
}

export function draw(svg, edges) {
  const parts = [];
  const places = {};
  let rows = 1;
  for (const column of COLUMNS) {
    const names = tally(edges, column.key).slice(0, MOST);
    places[column.key] = new Map(names.map(([name], row) => [name, row]));
    rows = Math.max(rows, names.length);
    parts.push(element("text", { x: column.x, y: 14, "text-anchor": column.anchor, opacity: .6 }, column.title));
    names.forEach(([name, flows], row) => {
      const at = { x: column.x, y: 40 + row * ROW, "text-anchor": column.anchor };
      parts.push(element("text", at, `${name} (${flows})`));
    });
  }
  const most = Math.max(1, ...edges.map((edge) => edge.flows));
  for (const [from, to, left, right] of [["client", "service", 230, 330], ["service", "backend", 550, 650]]) {
    for (const [one, other, flows] of joined(edges, from, to)) {
      const a = places[from].get(one), b = places[to].get(other);
      if (a === undefined || b === undefined) continue;
      const y1 = 36 + a * ROW, y2 = 36 + b * ROW, middle = (left + right) / 2;
      const line = element("path", {
        d: `M${left} ${y1}C${middle} ${y1} ${middle} ${y2} ${right} ${y2}`,
        "stroke-width": 1 + 7 * Math.min(1, flows / most),
      });
      line.append(element("title", {}, `${one} → ${other}: ${flows} flows`));
      parts.push(line);
    }
  }
  if (!edges.length) parts.push(element("text", { x: 8, y: 40 }, "nobody talks to a service now"));
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${50 + rows * ROW}`);
  svg.replaceChildren(...parts);
}
