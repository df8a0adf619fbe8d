// Messages over the page: where an error shows, wherever the page is scrolled to.

import { byId, createElement } from "./dom.js";

/**
 * Show a message until it is closed, replaced by one with the same owner, or removed.
 *
 * @param {{owner: string, text: string, facts?: string, quiet?: boolean, action?: {name: string, run: () => void}}} message
 * @returns {{say: (text: string) => void, remove: () => void, isShown: () => boolean}}
 */
export function showToast({ owner, text, facts = "", quiet = false, action }) {
  removeToast(owner);
  const before = document.activeElement;
  const line = createElement("p", {}, text);
  const toast = createElement("div", { className: "toast", role: quiet ? "status" : "alert" }, line);
  toast.dataset.owner = owner;
  if (facts) toast.append(createElement("p", { className: "facts" }, facts));
  if (action) {
    const button = createElement("button", { type: "button" }, action.name);
    button.addEventListener("click", () => {
      toast.remove();
      action.run();
    });
    toast.append(button);
  }
  const close = createElement("button", { type: "button", className: "close", "aria-label": "Close" }, "×");
  close.addEventListener("click", () => {
    toast.remove();
    before.focus({ preventScroll: true });
  });
  toast.append(close);
  byId("toasts").append(toast);
  return { say: (words) => (line.textContent = words), remove: () => toast.remove(), isShown: () => toast.isConnected };
}

export function removeToast(owner) {
  for (const toast of [...byId("toasts").children]) if (toast.dataset.owner === owner) toast.remove();
}
