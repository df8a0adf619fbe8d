// The large files of the site, which are packed with xz and whose hashes `models.json` has.

const ROOT = new URL("../", import.meta.url);
const KEPT = "ign-files"; // the cache of the browser

/** @returns {Promise<object>} models.json */
export async function readIndex() {
  const response = await fetch(new URL("models.json", ROOT), { cache: "no-cache" });
  if (!response.ok) throw Object.assign(new Error("The list of the models could not be loaded."), { status: 503 });
  return response.json();
}

/**
 * The bytes of a file, from the browser's cache if it is there.
 *
 * @param {{path: string, integrity: string, bytes: number, planes: boolean}} file bytes: when unpacked; planes: whether
 *   the first bytes of all words come first, then all second ones, and so on, which makes numbers smaller when packed
 */
export async function readFile({ path, integrity, bytes, planes }) {
  const { XzReadableStream } = globalThis["xz-decompress"];
  const packed = await (await download(path, integrity)).arrayBuffer();
  const content = new Uint8Array(await new Response(new XzReadableStream(new Response(packed).body)).arrayBuffer());
  return (planes ? joinPlanes(content) : content).subarray(0, bytes);
}

/** One worker loads a file, and the others take it from the cache; both are there with HTTPS, or on this machine. */
function download(path, integrity) {
  const url = new URL(`${path}?${encodeURIComponent(integrity)}`, ROOT);
  const load = async () => {
    const cache = await globalThis.caches?.open(KEPT);
    const known = await cache?.match(url);
    if (known) return known;
    const response = await fetch(url, { integrity }); // the browser refuses other content
    if (!response.ok) throw new Error(`${response.status} ${response.statusText}`);
    for (const old of (await cache?.keys()) ?? []) if (new URL(old.url).pathname === url.pathname) await cache.delete(old);
    await cache?.put(url, response.clone()).catch(() => {}); // the disk may be full
    return response;
  };
  return navigator.locks ? navigator.locks.request(url.href, load) : load();
}

function joinPlanes(planes) {
  const count = planes.length / 4;
  const joined = new Uint8Array(planes.length);
  for (let plane = 0; plane < 4; plane++) {
    for (let i = 0; i < count; i++) joined[4 * i + plane] = planes[plane * count + i];
  }
  return joined;
}
