"""The report's script: shows the matches page by page, so that only the pictures in view are loaded."""

SCRIPT = """
const matches = JSON.parse(document.getElementById("matches").textContent);
const numPerPage = 24;
const $ = id => document.getElementById(id);
const make = (tag, className, text) => {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
};
const orders = {
  near: (a, b) => a.order - b.order,
  far: (a, b) => b.order - a.order,
  clip: (a, b) => a.video_id < b.video_id ? -1 : 1,
};
const kinds = {
  all: () => true,
  wrong: m => m.level === 0,
  partial: m => m.level > 0 && m.level < 3,
  right: m => m.level === 3,
};
let page = 0;

function rectangles(boxes, attribute) {
  return boxes.map(b => b.map(Number)).map(([x0, y0, x1, y1]) =>
    `<rect${attribute} x="${x0}" y="${y0}" width="${x1 - x0}" height="${y1 - y0}"/>`).join("");
}

function figureOf(figure) {
  const element = make("figure"), picture = make("div", "picture");
  element.style.flex = `${figure.width / figure.height} 1 0`;
  if (figure.error) picture.append(make("p", "", figure.error));
  else {
    const image = make("img");
    image.loading = "lazy";
    image.alt = figure.caption;
    image.width = figure.width;
    image.height = figure.height;
    image.src = figure.src;
    picture.append(image);
    picture.insertAdjacentHTML("beforeend",
      `<svg viewBox="0 0 ${+figure.width} ${+figure.height}" preserveAspectRatio="none">` +
      rectangles(figure.boxes, "") + rectangles(figure.truth, ' class="truth"') + "</svg>");
  }
  element.append(picture, make("figcaption", "", figure.caption));
  return element;
}

function cardOf(match) {
  const card = make("article"), header = make("header"), pair = make("div", "pair");
  header.append(make("h3", "", `${match.video_id} \\u2192 ${match.item_id}`));
  if (match.distance !== null) header.append(make("span", "faint", `distance ${match.distance.toFixed(3)}`));
  if (match.level !== null) {
    const badges = make("span", "badges");
    if (match.level === 0) badges.append(make("span", "badge missed", "wrong item"));
    else for (const level of [1, 2, 3])
      badges.append(make("span", level <= match.level ? "badge" : "badge missed", `S${level}`));
    header.append(badges);
  }
  pair.append(...match.figures.map(figureOf));
  card.append(header, pair);
  return card;
}

function show() {
  const words = $("search").value.trim().toLowerCase().split(/\\s+/).filter(Boolean);
  const kind = kinds[$("kind") ? $("kind").value : "all"];
  const found = matches
    .filter(m => kind(m) && words.every(w => `${m.video_id} ${m.item_id}`.toLowerCase().includes(w)))
    .sort(orders[$("order").value]);
  const numPages = Math.max(1, Math.ceil(found.length / numPerPage));
  page = Math.min(Math.max(page, 0), numPages - 1);
  const start = page * numPerPage, shown = found.slice(start, start + numPerPage);
  $("cards").replaceChildren(...shown.map(cardOf));
  const count = shown.length ? `${start + 1}\\u2013${start + shown.length} of ${found.length}` : "none";
  for (const pager of document.querySelectorAll(".pager")) {
    pager.hidden = numPages === 1 && pager.classList.contains("below");
    pager.querySelector("span").textContent = count;
    pager.querySelector(".back").disabled = page === 0;
    pager.querySelector(".on").disabled = page === numPages - 1;
  }
}

for (const id of ["search", "order", "kind"]) if ($(id)) $(id).addEventListener("input", () => { page = 0; show(); });
for (const pager of document.querySelectorAll(".pager")) {
  const turn = step => { page += step; show(); if (pager.classList.contains("below")) $("tools").scrollIntoView(); };
  pager.querySelector(".back").addEventListener("click", () => turn(-1));
  pager.querySelector(".on").addEventListener("click", () => turn(1));
}
show();
"""
