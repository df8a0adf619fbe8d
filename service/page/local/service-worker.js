// Keeps the files of the page, so that it opens without a network. `ign site` defines BUILD, a hash of FILES, and FILES
// before this. The worker keeps model and runtime by itself, see `files.js`.

const NAME = `ign-page-${BUILD}`;

async function install() {
  const cache = await caches.open(NAME);
  await cache.addAll(FILES.map((file) => new Request(file, { cache: "no-cache" }))); // asks whether the browser's is true
  await skipWaiting();
}

async function activate() {
  const old = (await caches.keys()).filter((name) => name.startsWith("ign-page-") && name !== NAME);
  await Promise.all(old.map((name) => caches.delete(name)));
  await clients.claim();
}

async function answer(request) {
  const cache = await caches.open(NAME);
  const wanted = request.mode === "navigate" && isPage(request.url) ? "./" : request;
  return (await cache.match(wanted)) ?? fetch(request);
}

/** Whether a URL is that of the page, also with a query. */
const isPage = (url) => new URL("./", url).href === registration.scope && /\/(index\.html)?$/.test(new URL(url).pathname);

addEventListener("install", (event) => event.waitUntil(install()));
addEventListener("activate", (event) => event.waitUntil(activate()));
addEventListener("fetch", (event) => {
  const { method, url } = event.request;
  if (method === "GET" && new URL(url).origin === location.origin) event.respondWith(answer(event.request));
});
