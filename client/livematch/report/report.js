"use strict";

const { limit, limit_text: limitText, matches } = JSON.parse(document.getElementById("data").textContent);
const numPerPage = 24;
const numBins = 28;
const svgNamespace = document.querySelector("svg").namespaceURI;

const $ = id => document.getElementById(id);

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function draw(parent, tag, attributes, text) {
  const element = document.createElementNS(svgNamespace, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
}

// The histogram: one bar per bin, right and wrong items stacked where the truth is known.

function showHistogram() {
  const measured = matches.filter(match => match.distance !== null);
  if (!measured.length) return;
  // reduce, since Math.max cannot take 40,000 arguments in every browser
  const right = 1.05 * measured.reduce((largest, match) => Math.max(largest, match.distance), limit) || 1;
  const kindOf = match => match.level === null ? "matches" : match.level > 0 ? "right" : "wrong";
  const bins = Array.from({ length: numBins }, () => ({ matches: 0, right: 0, wrong: 0 }));
  for (const match of measured) // trunc, since another tool's rounding may give slightly negative distances
    bins[Math.min(Math.trunc(match.distance / right * numBins), numBins - 1)][kindOf(match)] += 1;
  const highest = Math.max(...bins.map(bin => bin.matches + bin.right + bin.wrong));
  $("histogram-caption").textContent = `Distances of ${measured.length} matches; the highest bar counts ${highest}`;
  drawHistogram($("histogram").querySelector("svg"), bins, highest, right);
  $("histogram").hidden = false;
}

function drawHistogram(svg, bins, highest, right) {
  const top = 18, axis = 90; // px; x is in percent of the width, so that text keeps its size
  const percent = fraction => `${(1 + 98 * fraction).toFixed(2)}%`;
  bins.forEach((bin, index) => {
    const range = [index, index + 1].map(edge => (right * edge / numBins).toFixed(2)).join(" to ");
    let y = axis;
    for (const [kind, count] of Object.entries(bin).filter(([, count]) => count)) {
      const height = (axis - top) * count / highest;
      y -= height;
      const place = { x: percent(index / numBins), y, width: `${96 / numBins}%`, height };
      draw(draw(svg, "rect", { class: kind, ...place }), "title", {}, `${count} ${kind}, ${range}`);
    }
  });
  draw(svg, "line", { x1: 0, x2: "100%", y1: axis, y2: axis });
  for (let tenth = 0; tenth <= limit * 10; tenth += 2)
    draw(svg, "text", { x: percent(tenth / 10 / right), y: axis + 15, "text-anchor": "middle" }, (tenth / 10).toFixed(1));
  const x = percent(limit / right);
  draw(svg, "line", { class: "limit", x1: x, x2: x, y1: 2, y2: axis });
  draw(svg, "text", { x, dx: -5, y: 11, "text-anchor": "end" }, `limit ${limitText}`);
}

// The cards: one match each, a page of them at a time, so that only the images in view are loaded.

function figureOf({ caption, width, height, src, error, boxes, truth }) {
  const figure = make("figure"), frame = make("div", "image");
  figure.style.flex = `${width / height} 1 0`;
  if (error) frame.append(make("p", "", error));
  else {
    frame.append(Object.assign(make("img"), { loading: "lazy", alt: caption, width, height, src }));
    const svg = draw(frame, "svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none" });
    for (const [kind, kindBoxes] of [["found", boxes], ["truth", truth]])
      for (const [x0, y0, x1, y1] of kindBoxes)
        draw(svg, "rect", { class: kind, x: x0, y: y0, width: x1 - x0, height: y1 - y0 });
  }
  figure.append(frame, make("figcaption", "", caption));
  return figure;
}

function badgesOf(level) {
  const badges = make("span", "badges");
  if (level === 0) badges.append(make("span", "badge missed", "wrong item"));
  else for (const reached of [1, 2, 3]) badges.append(make("span", reached <= level ? "badge" : "badge missed", `S${reached}`));
  return badges;
}

function titleOf({ title, url }) {
  const element = make(url ? "a" : "span", "title", title || url);
  if (url) Object.assign(element, { href: url, rel: "noreferrer" });
  return element;
}

function cardOf(match) {
  const card = make("article"), header = make("header"), pair = make("div", "pair");
  header.append(make("h3", "", `${match.video_id} → ${match.item_id}`));
  if (match.distance !== null) header.append(make("span", "faint", `distance ${match.distance.toFixed(3)}`));
  if (match.level !== null) header.append(badgesOf(match.level));
  if (match.title || match.url) header.append(titleOf(match));
  pair.append(...match.figures.map(figureOf));
  card.append(header, pair);
  return card;
}

const orders = {
  nearest: found => found, // the page lists them in this order
  farthest: found => found.reverse(),
  clip: found => found.sort((a, b) => a.video_id < b.video_id ? -1 : 1),
};
const kinds = {
  all: () => true,
  wrong: match => match.level === 0,
  partial: match => match.level > 0 && match.level < 3,
  right: match => match.level === 3,
};
let page = 0;

function findMatches() {
  const words = $("search").value.toLowerCase().split(/\s+/);
  const isKind = kinds[$("kind")?.value ?? "all"];
  const textOf = match => `${match.video_id} ${match.item_id} ${match.title}`.toLowerCase();
  const isFound = match => words.every(word => textOf(match).includes(word));
  return orders[$("order").value](matches.filter(match => isKind(match) && isFound(match)));
}

function showPage() {
  const found = findMatches();
  const numPages = Math.max(1, Math.ceil(found.length / numPerPage));
  page = Math.min(Math.max(page, 0), numPages - 1);
  const start = page * numPerPage, shown = found.slice(start, start + numPerPage);
  $("cards").replaceChildren(...shown.map(cardOf));
  for (const pager of document.querySelectorAll(".pager")) {
    pager.hidden = numPages === 1 && pager.classList.contains("below");
    pager.querySelector("span").textContent =
      shown.length ? `${start + 1}–${start + shown.length} of ${found.length}` : "none";
    pager.querySelector(".previous").disabled = page === 0;
    pager.querySelector(".next").disabled = page === numPages - 1;
  }
}

function turnPage(step, pager) {
  page += step;
  showPage();
  if (pager.classList.contains("below")) $("tools").scrollIntoView();
}

for (const pager of document.querySelectorAll(".pager")) {
  pager.querySelector(".previous").addEventListener("click", () => turnPage(-1, pager));
  pager.querySelector(".next").addEventListener("click", () => turnPage(1, pager));
}
for (const tool of document.querySelectorAll("#search, #order, #kind"))
  tool.addEventListener("input", () => {
    page = 0;
    showPage();
  });
showHistogram();
showPage();
