// The few things every module does with the document.

export const byId = (id) => document.getElementById(id);

/** An element with properties, or attributes where the name has a dash, and children; no text becomes markup. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-")) element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

/** Show a picture in an <img>, and hide the invitation beside it. */
export function show(image, source, description) {
  image.src = source;
  image.alt = description;
  image.hidden = false;
  const placeholder = image.parentElement.querySelector(".placeholder");
  if (placeholder) placeholder.hidden = true;
  image.classList.remove("arrives");
  void image.offsetWidth; // begins the transition anew
  image.classList.add("arrives");
}

/** Take the picture away again. */
export function unshow(image) {
  image.hidden = true;
  image.removeAttribute("src");
  image.alt = "";
  const placeholder = image.parentElement.querySelector(".placeholder");
  if (placeholder) placeholder.hidden = false;
}

/** The whole number in a field, or null where it holds none that is allowed. */
export function whole(field) {
  return field.checkValidity() && field.value !== "" ? field.valueAsNumber : null;
}
