// Samples on a canvas: images as a grid of pixels, vectors as points.

const GAP = 1;
const PLOT = 400;

/** Decode base64 PNGs into ImageBitmaps, whose values no colour profile changes. */
export function decoded(images) {
  return Promise.all(
    images.map(async (text) => {
      const bytes = Uint8Array.from(atob(text), (one) => one.charCodeAt(0));
      return createImageBitmap(new Blob([bytes], { type: "image/png" }), { colorSpaceConversion: "none" });
    }),
  );
}

/** Draw bitmaps as a grid, pixel for pixel; CSS magnifies the canvas by a whole factor to fit `width`. */
export function drawImages(canvas, bitmaps, width) {
  const [w, hgt] = [bitmaps[0].width, bitmaps[0].height];
  const columns = Math.ceil(Math.sqrt(bitmaps.length));
  const rows = Math.ceil(bitmaps.length / columns);
  canvas.width = columns * (w + GAP) - GAP;
  canvas.height = rows * (hgt + GAP) - GAP;
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  bitmaps.forEach((bitmap, index) =>
    context.drawImage(bitmap, (index % columns) * (w + GAP), Math.floor(index / columns) * (hgt + GAP)),
  );
  const scale = Math.max(1, Math.min(16, Math.floor(width / canvas.width)));
  canvas.style.width = `${canvas.width * scale}px`;
  canvas.style.height = "auto";
}

/** Draw points in a frame that all levels share, by two coordinates, or by a single one and the point's index. */
export function drawPoints(canvas, values, half) {
  const density = window.devicePixelRatio || 1;
  canvas.width = canvas.height = PLOT * density;
  canvas.style.width = `${PLOT}px`;
  canvas.style.height = "auto";
  const context = canvas.getContext("2d");
  context.scale(density, density);
  const style = getComputedStyle(canvas);
  context.strokeStyle = style.getPropertyValue("--line");
  context.beginPath();
  context.moveTo(PLOT / 2, 0);
  context.lineTo(PLOT / 2, PLOT);
  context.moveTo(0, PLOT / 2);
  context.lineTo(PLOT, PLOT / 2);
  context.stroke();
  context.fillStyle = style.getPropertyValue("--accent");
  context.globalAlpha = 0.75;
  values.forEach((value, index) => {
    const [a, b] = value.length > 1 ? value : [value[0], half * (2 * (index / values.length) - 1)];
    context.beginPath();
    context.arc(((a / half + 1) * PLOT) / 2, ((1 - b / half) * PLOT) / 2, 2.4, 0, 2 * Math.PI);
    context.fill();
  });
}

/** Return half the width of a square around 0 that holds all points but a few far out. */
export function reach(values) {
  const sizes = values
    .flat()
    .map(Math.abs)
    .sort((a, b) => a - b);
  return 1.3 * Math.max(1e-9, sizes[Math.floor(0.97 * (sizes.length - 1))]);
}

/** Make a PNG of a drawn grid, with its pixels magnified. */
export function magnified(canvas, scale) {
  const large = document.createElement("canvas");
  large.width = canvas.width * scale;
  large.height = canvas.height * scale;
  const context = large.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.drawImage(canvas, 0, 0, large.width, large.height);
  return new Promise((resolve) => large.toBlob(resolve, "image/png"));
}
