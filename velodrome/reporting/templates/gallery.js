"use strict";

// The gallery of mistakes: which images to show, in which order, a page of cards at a time, and one of them large.
(() => {
  const PAGE = matchMedia("(max-width: 44rem)").matches ? 12 : 24;
  const data = JSON.parse(document.getElementById("gallery-data").textContent);
  const $ = (id) => document.getElementById(id);
  const sprite = $("sprite");
  const maps = data.map ? Uint8Array.from(atob(data.map.values), (letter) => letter.charCodeAt(0)) : null;
  const all = data.index.map((_, at) => at);
  const suggested = (at) => data.suggested[data.index[at]];
  const isWrong = (at) => data.true[at] !== data.predicted[at];
  const chance = (at) => data.chance ? data.chance[0][at] : -1;
  const words = all.map((at) => [data.classes[data.true[at]], data.classes[data.predicted[at]], data.path[at]]
    .join("\n").toLowerCase());

  // What the reader has chosen. `label` and `prediction` are numbers of classes, or "" for any.
  const start = { view: "mistakes", label: "", prediction: "", search: "", sort: "loss" };
  if (!data.mistakes) Object.assign(start, { view: "best", sort: "class" });
  const chosen = { ...start };
  let matches = [], page = 0, open = -1, drawable = false;

  const byLoss = (a, b) => (data.loss[b] ?? Infinity) - (data.loss[a] ?? Infinity) || data.index[a] - data.index[b];
  const orders = {
    loss: byLoss,
    confident: (a, b) => chance(b) - chance(a) || byLoss(a, b),
    unsure: (a, b) => chance(a) - chance(b) || byLoss(a, b),
    class: (a, b) => data.true[a] - data.true[b] || (isWrong(a) ? byLoss(a, b) : byLoss(b, a)),
    index: (a, b) => data.index[a] - data.index[b],
  };
  const views = {
    mistakes: { images: all.filter(isWrong), one: "mistake", many: "mistakes", sort: "loss", total: data.mistakes },
    worst: { images: worstOfEachClass(3), one: "mistake", many: "worst of each class", sort: "class" },
    errors: { images: all.filter((at) => suggested(at) !== undefined), one: "label to check", many: "labels to check", sort: "loss", total: Object.keys(data.suggested).length },
    best: { images: all.filter((at) => !isWrong(at)), one: "right answer", many: "right answers", sort: "class" },
  };

  function worstOfEachClass(most) {
    const taken = data.classes.map(() => 0);
    return all.filter(isWrong).sort(byLoss).filter((at) => taken[data.true[at]]++ < most);
  }

  // Small helpers. Texts of users only ever become text nodes and attributes.
  function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children);
    return element;
  }
  function name(number) {
    const text = data.classes[number];
    return make("bdi", { class: "name", title: text }, text);
  }
  const count = (number) => number.toLocaleString("en");
  const percent = (part) => part < 0 ? "–" : `${(part / 100).toFixed(1)}%`;
  const title = (at) => isWrong(at)
    ? [name(data.true[at]), " taken for ", name(data.predicted[at])]
    : [name(data.true[at]), " recognised"];

  // Filtering and sorting
  function matching() {
    const tokens = chosen.search.toLowerCase().split(/\s+/).filter(Boolean);
    return views[chosen.view].images.filter((at) =>
      (chosen.label === "" || data.true[at] === chosen.label)
      && (chosen.prediction === "" || data.predicted[at] === chosen.prediction)
      && tokens.every((token) => words[at].includes(token) || String(data.index[at]) === token.replace(/^#/, "")));
  }

  function update(changes = {}) {
    Object.assign(chosen, changes);
    matches = matching().sort(orders[chosen.sort]);
    page = 0;
    $("label").value = chosen.label;
    $("prediction").value = chosen.prediction;
    $("search").value = chosen.search;
    $("sort").value = chosen.sort;
    document.querySelectorAll("#views button").forEach((button) =>
      button.setAttribute("aria-pressed", button.dataset.view === chosen.view));
    $("found").textContent = found();
    showChips();
    showPage();
  }

  function found() {
    const { images, one, many, total = images.length } = views[chosen.view];
    const rest = total > images.length ? `; ${count(images.length)} of ${count(total)} are in this page` : "";
    return `${count(matches.length)} of ${count(images.length)} ${images.length === 1 ? one : many}${rest}`;
  }

  function showChips() {
    const { label, prediction } = chosen;
    const chips = [];
    if (label !== "" && prediction !== "" && label !== prediction) {
      chips.push(chip({ label: "", prediction: "" }, name(label), " taken for ", name(prediction)));
    } else {
      if (label !== "") chips.push(chip({ label: "" }, "true class ", name(label)));
      if (prediction !== "") chips.push(chip({ prediction: "" }, "taken for ", name(prediction)));
    }
    $("chips").replaceChildren(...chips);
  }

  function chip(changes, ...children) {
    const text = children.map((child) => child.textContent ?? child).join("");
    const cross = make("span", { "aria-hidden": "true", class: "cross" }, "×");
    const button = make("button", { type: "button", class: "chip", "aria-label": `${text}: clear this filter` }, ...children, cross);
    button.addEventListener("click", () => { update(changes); $("search").focus(); });
    return button;
  }

  // Cards
  function showPage() {
    const pages = Math.max(1, Math.ceil(matches.length / PAGE));
    page = Math.min(pages - 1, Math.max(0, page));
    const cards = matches.slice(page * PAGE, (page + 1) * PAGE).map(card);
    $("cards").replaceChildren(...cards);
    $("none").hidden = matches.length > 0;
    $("pager").hidden = pages === 1;
    $("page").textContent = `Page ${count(page + 1)} of ${count(pages)}`;
    $("previous-page").disabled = page === 0;
    $("next-page").disabled = page === pages - 1;
    $("paper").textContent = `The first ${Math.min(cards.length, 12)} of ${count(matches.length)} images.`;
  }

  function card(at) {
    const opener = make("button", { type: "button", class: "card-open", "aria-haspopup": "dialog" }, ...title(at));
    opener.addEventListener("click", () => view(matches.indexOf(at)));
    const item = make("li", {
      class: "card", "data-index": data.index[at], "data-true": data.true[at], "data-predicted": data.predicted[at],
      "data-wrong": isWrong(at),
    }, panes(at), make("h3", {}, opener));
    item.append(...details(at));
    return item;
  }

  // All that stands under the title, in a card and in the large view.
  function details(at) {
    const parts = [];
    if (suggested(at) !== undefined) {
      const mark = make("p", { class: "mark" });
      mark.append(make("span", { class: "flag", "aria-hidden": "true" }), "Check the label: rather ", name(suggested(at)));
      parts.push(mark);
    }
    if (data.top) parts.push(bars(at));
    const loss = data.loss[at] === null ? "–" : data.loss[at].toFixed(2);
    const path = make("bdi", { class: "path", title: data.path[at] }, data.path[at]);
    parts.push(make("p", { class: "about" }, `#${data.index[at]} · loss ${loss} · `, path));
    return parts;
  }

  // The most probable classes; and the true one, should it not be among them.
  function bars(at) {
    const rows = data.top.map((ranked, rank) => [ranked[at], data.chance[rank][at]]);
    if (data.loss[at] !== null && rows.every(([number]) => number !== data.true[at])) {
      rows.push([data.true[at], 10000 * Math.exp(-data.loss[at])]);
    }
    return make("ol", { class: "bars", "aria-label": "Probabilities" }, ...rows.map(([number, part]) => {
      const role = number === data.true[at] ? "is-true" : number === data.predicted[at] ? "is-predicted" : "";
      const bar = make("span", { class: "bar", "aria-hidden": "true" });
      bar.style.setProperty("--share", Math.max(0, part) / 10000);
      return make("li", { class: role }, name(number), bar, make("b", {}, percent(part)));
    }));
  }

  // Image, heat map of the predicted class, heat map of the true class; only what there is.
  function panes(at) {
    const row = make("div", { class: "panes" });
    if (!data.image) return row;
    const sure = chance(at) < 0 ? "" : ` with ${percent(chance(at))}`;
    const said = isWrong(at)
      ? `${data.classes[data.true[at]]} taken for ${data.classes[data.predicted[at]]}${sure}`
      : `${data.classes[data.true[at]]}, recognised${sure}`;
    row.append(pane(at, -1, `Image ${data.index[at]}: ${said}`, "image"));
    if (maps) {
      row.append(heatPane(at, 0, data.predicted[at], isWrong(at) ? "predicted" : "Grad-CAM"));
      if (isWrong(at)) row.append(heatPane(at, 1, data.true[at], "true"));
    }
    return row;
  }

  function heatPane(at, which, number, role) {
    const { height, width } = data.map;
    const where = heat.strongest(map(at, which), height, width);
    const said = where ? `strongest ${where}` : `no position speaks for ${data.classes[number]}`;
    const element = pane(at, which, `Grad-CAM for ${data.classes[number]}: ${said}`, role, name(number));
    if (!where) element.append(make("span", { class: "nothing", "aria-hidden": "true" }, "no position"));
    return element;
  }

  function pane(at, which, label, role, ...caption) {
    const canvas = make("canvas", { role: "img", "aria-label": label, "data-at": at, "data-which": which });
    const scale = Math.max(1, Math.round(192 / Math.max(data.image.height, data.image.width)));
    canvas.classList.toggle("smooth", isSmooth());
    canvas.height = data.image.height * scale;
    canvas.width = data.image.width * scale;
    draw(canvas);
    return make("figure", { class: `pane ${role}` }, canvas, make("figcaption", {}, make("span", {}, role), ...caption));
  }

  // Pixels of small images are shown as squares; those of larger ones are too small for that.
  function isSmooth() {
    return Math.max(data.image.height, data.image.width) > 48;
  }

  function map(at, which) {
    const size = data.map.height * data.map.width;
    return maps.subarray((2 * at + which) * size, (2 * at + which + 1) * size);
  }

  const layers = new WeakMap(); // canvas -> its heat map, so that the slider only has to blend

  function draw(canvas) {
    if (!drawable) return;
    const at = Number(canvas.dataset.at), which = Number(canvas.dataset.which);
    const { height, width, columns } = data.image;
    const context = canvas.getContext("2d");
    context.globalAlpha = 1;
    context.imageSmoothingEnabled = isSmooth();
    // Under a map the image is grey, so that none of its colours can be taken for the map's.
    context.filter = which < 0 ? "none" : "grayscale(1) brightness(0.85)";
    context.drawImage(sprite, at % columns * width, Math.floor(at / columns) * height, width, height, 0, 0, canvas.width, canvas.height);
    context.filter = "none";
    const values = which < 0 ? [] : map(at, which);
    if (!values.some(Boolean)) return;
    context.imageSmoothingEnabled = true;
    context.globalAlpha = $("strength").value / 100;
    if (!layers.has(canvas)) layers.set(canvas, heat.layer(values, data.map.height, data.map.width));
    context.drawImage(layers.get(canvas), 0, 0, canvas.width, canvas.height);
  }

  const drawAll = () => document.querySelectorAll("#gallery canvas[data-at], #viewer canvas[data-at]").forEach(draw);

  // One image large
  function view(position) {
    if (position < 0 || position >= matches.length) return;
    open = position;
    const at = matches[position];
    $("viewer-title").replaceChildren(...title(at));
    $("viewer-body").replaceChildren(panes(at), ...details(at));
    $("viewer-place").textContent = `${count(position + 1)} of ${count(matches.length)}`;
    $("viewer-previous").disabled = position === 0;
    $("viewer-next").disabled = position === matches.length - 1;
    const opens = !$("viewer").open;
    if (opens) $("viewer").showModal();
    $("viewer").scrollTop = 0;
    // A button that has just been disabled would swallow the next arrow key.
    if (opens || document.activeElement.disabled) $("viewer-body").focus({ preventScroll: true });
  }

  function closed() {
    page = Math.floor(open / PAGE);
    showPage();
    $("cards").children[open % PAGE]?.querySelector("button").focus();
  }

  function turn(event) {
    const moves = { ArrowLeft: open - 1, ArrowRight: open + 1, Home: 0, End: matches.length - 1 };
    if (!(event.key in moves) || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    view(moves[event.key]);
  }

  // From elsewhere on the page: a pair or a class was chosen.
  function come(changes) {
    update({ search: "", ...changes });
    $("gallery").scrollIntoView();
    ($("chips").querySelector("button") ?? $("search")).focus({ preventScroll: true });
  }

  function chosenElsewhere(button) {
    const number = (text) => text === undefined ? "" : Number(text);
    const label = number(button.dataset.true), prediction = number(button.dataset.predicted);
    const view = label !== "" && label === prediction ? "best" : "mistakes";
    come({ view, sort: views[view].sort, label, prediction });
  }

  // Arrow keys move in the confusion matrix.
  function moveInMatrix(event) {
    const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    const cell = event.target.closest("td, th");
    if (!(event.key in steps) || !cell) return;
    const [down, across] = steps[event.key];
    const rows = [...cell.closest("table").rows];
    let row = rows.indexOf(cell.parentElement), column = cell.cellIndex;
    for (;;) {
      row += down; column += across;
      const next = rows[row]?.cells[column];
      if (!next) return;
      const button = next.querySelector("button");
      if (button) { event.preventDefault(); button.focus(); return; }
    }
  }

  function listen() {
    const number = (event) => event.target.value === "" ? "" : Number(event.target.value);
    $("search").addEventListener("input", (event) => update({ search: event.target.value }));
    $("sort").addEventListener("change", (event) => update({ sort: event.target.value }));
    $("label").addEventListener("change", (event) => update({ label: number(event) }));
    $("prediction").addEventListener("change", (event) => update({ prediction: number(event) }));
    $("strength").addEventListener("input", () => requestAnimationFrame(drawAll));
    $("clear").addEventListener("click", () => { update(start); $("search").focus(); });
    document.querySelectorAll("#views button").forEach((button) =>
      button.addEventListener("click", () => update({ view: button.dataset.view, sort: views[button.dataset.view].sort })));
    for (const [id, step] of [["previous-page", -1], ["next-page", 1]]) {
      $(id).addEventListener("click", () => { page += step; showPage(); $("gallery").scrollIntoView(); $("found").focus({ preventScroll: true }); });
    }
    document.querySelectorAll(".choose").forEach((button) => button.addEventListener("click", () => chosenElsewhere(button)));
    document.querySelector(".matrix")?.addEventListener("keydown", moveInMatrix);
    $("viewer").addEventListener("keydown", turn);
    $("viewer").addEventListener("close", closed);
    $("viewer").addEventListener("click", (event) => { if (event.target === $("viewer")) $("viewer").close(); });
    $("viewer-close").addEventListener("click", () => $("viewer").close());
    $("viewer-previous").addEventListener("click", () => view(open - 1));
    $("viewer-next").addEventListener("click", () => view(open + 1));
  }

  function prepare() {
    for (const id of ["label", "prediction"]) {
      $(id).append(...data.classes.map((text, number) => make("option", { value: number }, text)));
    }
    document.querySelectorAll("#views button").forEach((button) => {
      const { images } = views[button.dataset.view];
      button.querySelector("b").textContent = count(images.length);
      button.hidden = images.length === 0 && button.dataset.view !== start.view;
    });
    const legend = $("legend").getContext("2d");
    legend.putImageData(new ImageData(heat.palette.map((part, index) => index % 4 === 3 ? 255 : part), 256, 1), 0, 0);
  }

  // The sprite is there at once or not at all: it is part of this file.
  async function load() {
    if (!data.image) return;
    try {
      await sprite.decode();
      const { width, height, columns } = data.image;
      const rows = Math.ceil(data.index.length / columns);
      const isWhole = sprite.naturalWidth >= columns * width && sprite.naturalHeight >= rows * height;
      // Of a damaged file a browser shows what it could read, and nothing for the rest.
      const last = make("canvas", { width: 1, height: 1 }).getContext("2d");
      last.drawImage(sprite, sprite.naturalWidth - 1, sprite.naturalHeight - 1, 1, 1, 0, 0, 1, 1);
      if (!isWhole || !last.getImageData(0, 0, 1, 1).data[3]) throw new RangeError("not the images of this run");
      drawable = true;
    } catch {
      data.image = null;
      $("no-images").hidden = false;
      document.querySelector(".heat").hidden = true;
    }
    if (drawable) drawAll(); else showPage();
  }

  $("gallery").hidden = false;
  prepare();
  listen();
  update();
  load();
})();
