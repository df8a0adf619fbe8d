const dark = matchMedia("(prefers-color-scheme: dark)");
const colour = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", colour);
colour();
const service = location.origin + location.pathname.replace(/docs$/, "");
SwaggerUIBundle({
  url: new URL("openapi.json", document.baseURI).href,
  dom_id: "#swagger-ui",
  deepLinking: true,
  defaultModelsExpandDepth: 0,
  displayRequestDuration: true,
  validatorUrl: null,
  /* The commands of the document name this service. */
  responseInterceptor: (response) => {
    if (response.url?.endsWith("/openapi.json")) response.text = response.text.replaceAll(/http:..127\.0\.0\.1:8000./g, service);
    return response;
  },
});
