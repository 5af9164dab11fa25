// Kinds of events, where an event is one item of data: how the page recognises, counts, names and draws them.

import { shape, whole } from "./format.js";

/** The kinds by the name that the API gives the kind of a dataset. */
export const EVENT_KINDS = {
  images: {
    axes: 3,
    preset: "images",
    counts: [1, 4, 16, 36, 64, 100],
    usualCount: 16,
    hasPixels: true,
    contents: ({ count, shape: event }) => `${whole(count)} images, ${shape(event)}`,
  },
  vectors: {
    axes: 1,
    preset: "density-2d",
    counts: [64, 256],
    usualCount: 256,
    hasPixels: false,
    contents: ({ count, shape: event }) => `${whole(count)} rows of ${shape(event)}`,
  },
};

/** Return the kind of events of a shape: (C, H, W) are images, (D,) are vectors. */
export function eventKind(eventShape) {
  return Object.values(EVENT_KINDS).find((kind) => kind.axes === eventShape.length);
}

/** Return the kind of events of a model or training by its network, because a configuration does not say the shape. */
export function eventKindOfConfig(config) {
  return EVENT_KINDS[config?.network?.kind === "mlp" ? "vectors" : "images"];
}

/** Convert a byte of a pixel into the number in [−1, 1] that models see. */
export function fromByte(value) {
  return value / 127.5 - 1;
}
