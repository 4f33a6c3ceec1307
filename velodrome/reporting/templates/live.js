"use strict";

// While training goes on, a newer page lies in this one's place every epoch. It is fetched when nobody would mind.
(() => {
  const EVERY_MS = 10_000, LATER_MS = 1_000;
  const isBusy = () => document.hidden || document.querySelector("dialog[open]")
    || document.activeElement?.matches("input, select, figure.chart") || getSelection().type === "Range";
  const reload = () => isBusy() ? setTimeout(reload, LATER_MS) : location.reload();
  setTimeout(reload, EVERY_MS);
})();
