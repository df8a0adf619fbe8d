// How much of a page is done, while the network is applied to its tiles.

import { streamEvents } from "./api.js";
import { byId } from "./dom.js";
import { Problem } from "./problem.js";

/** Show which share is done, 0…1; null if no page is in work. */
export function showProgress(share) {
  byId("running").hidden = share === null;
  byId("progress").value = share ?? 0;
}

/** The image of a response, while it says how many tiles are done. */
export async function projectTiles(request) {
  const pictures = [];
  showProgress(0);
  for await (const [name, data] of streamEvents("project", request)) {
    if (name === "progress") showProgress(data.rows_done / data.rows);
    else if (name === "step") pictures.push(data);
    else return { ...data.images[0], data: pictures.at(-1).data };
  }
  throw new Problem({ detail: "The response ended too early." });
}
