"use strict";

// Reading values off a chart, with a pointer or the arrow keys. At rest, and without this script, the legend shows the last.
function follow(figure) {
  const data = JSON.parse(figure.querySelector("script").textContent);
  const plot = figure.querySelector(".plot");
  const cursor = figure.querySelector(".cursor");
  const legend = figure.querySelector(".legend");
  const when = legend.querySelector(".when");
  const values = legend.querySelectorAll(".value");
  const dots = cursor.querySelectorAll("circle");
  const last = data.points.length - 1;
  const atRest = [when, ...values].map((part) => part.textContent);
  let shown = last;

  function show(index) {
    const [x, name, texts, heights] = data.points[index];
    shown = index;
    when.textContent = name;
    texts.forEach((text, i) => { values[i].textContent = text; });
    heights.forEach((y, i) => {
      dots[i].setAttribute("visibility", y === null ? "hidden" : "inherit");
      dots[i].setAttribute("cy", y ?? 0);
    });
    cursor.setAttribute("transform", `translate(${x} 0)`);
    cursor.setAttribute("visibility", "visible");
  }

  function rest() {
    [when, ...values].forEach((part, i) => { part.textContent = atRest[i]; });
    shown = last;
    cursor.setAttribute("visibility", "hidden");
  }

  function nearest(event) {
    const frame = plot.getBoundingClientRect();
    const x = (event.clientX - frame.left) * data.width / frame.width;
    const distance = (index) => Math.abs(data.points[index][0] - x);
    return data.points.reduce((best, _, index) => distance(index) < distance(best) ? index : best, 0);
  }

  function press(event) {
    const page = Math.max(1, Math.round(last / 10));
    const moves = { ArrowLeft: shown - 1, ArrowRight: shown + 1, PageDown: shown - page, PageUp: shown + page, Home: 0, End: last };
    if (!(event.key in moves) || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    show(Math.min(last, Math.max(0, moves[event.key])));
  }

  figure.tabIndex = 0;
  figure.setAttribute("role", "group");
  figure.setAttribute("aria-label", `${figure.querySelector("h3").textContent}: left and right arrow keys read the values`);
  plot.addEventListener("pointermove", (event) => show(nearest(event)));
  plot.addEventListener("pointerdown", (event) => show(nearest(event)));
  plot.addEventListener("pointerleave", rest);
  figure.addEventListener("keydown", press);
  figure.addEventListener("focus", () => legend.setAttribute("aria-live", "polite"));
  figure.addEventListener("blur", () => { legend.removeAttribute("aria-live"); rest(); });
}

document.querySelectorAll("figure.chart").forEach(follow);

// On paper nothing can be unfolded.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => { part.open = true; }));
