"use strict";

// Heat maps: a few values, spread smoothly over an image and coloured.
const heat = (() => {
  // Dark violet over red to light yellow. Lightness rises evenly along this path through OKLCH (the polar form of
  // Ottosson's OKLab), so that twice the value looks like twice the step, in print and to colour-blind eyes too.
  function colour(share) {
    const lightness = 0.32 + 0.62 * share;
    const chroma = 0.15 + 0.07 * Math.sin(Math.PI * share);
    const hue = (295 + 165 * share) * Math.PI / 180;
    const a = chroma * Math.cos(hue), b = chroma * Math.sin(hue);
    const l = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3;
    const m = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3;
    const s = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3;
    return [
      4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
      -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
      -0.0041960863 * l - 0.7034186147 * m + 1.7076147010 * s,
    ].map((linear) => {
      const light = Math.min(1, Math.max(0, linear));
      return 255 * (light <= 0.0031308 ? 12.92 * light : 1.055 * light ** (1 / 2.4) - 0.055);
    });
  }

  // 256 colours of red, green, blue and opacity. Where nothing speaks for the class the image shows through.
  const palette = new Uint8ClampedArray(256 * 4);
  for (let value = 0; value < 256; value++) {
    const share = value / 255;
    palette.set([...colour(share), 255 * Math.min(1, 0.06 + 1.1 * share ** 1.25)], 4 * value);
  }
  const colours = new Uint32Array(palette.buffer); // the same, four bytes at a time

  // Cubic interpolation (Catmull-Rom): how much each of `count` values counts at each of `size` places.
  function weights(count, size) {
    return Array.from({ length: size }, (_, place) => {
      const at = (place + 0.5) * count / size - 0.5;
      const first = Math.floor(at), t = at - first;
      const row = new Float32Array(count);
      [
        t * (-0.5 + t * (1 - 0.5 * t)), 1 + t * t * (-2.5 + 1.5 * t),
        t * (0.5 + t * (2 - 1.5 * t)), t * t * (-0.5 + 0.5 * t),
      ].forEach((weight, tap) => { row[Math.min(count - 1, Math.max(0, first - 1 + tap))] += weight; });
      return row;
    });
  }

  // The map as a canvas of some 100 pixels a side; the browser stretches it the rest of the way.
  function layer(values, height, width) {
    const factor = Math.max(1, Math.round(96 / Math.max(height, width)));
    const canvas = document.createElement("canvas");
    canvas.height = height * factor;
    canvas.width = width * factor;
    const down = weights(height, canvas.height), across = weights(width, canvas.width);
    const context = canvas.getContext("2d");
    const pixels = context.createImageData(canvas.width, canvas.height);
    const coloured = new Uint32Array(pixels.data.buffer);
    const line = new Float32Array(width);
    down.forEach((rows, y) => {
      line.fill(0);
      rows.forEach((weight, row) => {
        if (weight) for (let x = 0; x < width; x++) line[x] += weight * values[row * width + x];
      });
      across.forEach((columns, x) => {
        let value = 0;
        for (let column = 0; column < width; column++) value += columns[column] * line[column];
        coloured[y * canvas.width + x] = colours[Math.min(255, Math.max(0, Math.round(value)))];
      });
    });
    context.putImageData(pixels, 0, 0);
    return canvas;
  }

  // Where the map is strongest: "in the upper left"; null where it is zero everywhere.
  function strongest(values, height, width) {
    const most = values.reduce((best, value, index) => value > values[best] ? index : best, 0);
    if (!values[most]) return null;
    const third = (place, count) => Math.min(2, Math.floor(3 * (place + 0.5) / count));
    const row = ["upper", "middle", "lower"][third(Math.floor(most / width), height)];
    const column = ["left", "centre", "right"][third(most % width, width)];
    return row === "middle" && column === "centre" ? "in the centre" : `in the ${row} ${column}`;
  }

  return { layer, palette, strongest };
})();
