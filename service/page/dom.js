// Helpers for the document.

export const byId = (id) => document.getElementById(id);

/** Create an element. Names with a dash are set as attributes, others as properties; text is never parsed as markup. */
export function createElement(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-")) element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

/** Show an image in an <img>, and hide the placeholder beside it. */
export function showImage(image, source, description, { arrives = true } = {}) {
  image.src = source;
  image.alt = description;
  image.hidden = false;
  const placeholder = image.parentElement.querySelector(".placeholder");
  if (placeholder) placeholder.hidden = true;
  if (!arrives) return;
  image.classList.remove("arrives");
  void image.offsetWidth; // forces a layout, which restarts the transition
  image.classList.add("arrives");
}

/** Remove the image and show the placeholder. */
export function hideImage(image) {
  image.hidden = true;
  image.removeAttribute("src");
  image.alt = "";
  const placeholder = image.parentElement.querySelector(".placeholder");
  if (placeholder) placeholder.hidden = false;
}

/** The integer in a field, or null if the field is empty or invalid. */
export function readInteger(field) {
  return field.checkValidity() && field.value !== "" ? field.valueAsNumber : null;
}

/** Call a function once, when an element comes near the view. */
export function whenVisible(element, call) {
  const observer = new IntersectionObserver(([entry]) => {
    if (!entry.isIntersecting) return;
    observer.disconnect();
    call();
  }, { rootMargin: "400px" });
  observer.observe(element);
}
