// Shows the OpenAPI document with Swagger UI, in the colour scheme that the browser prefers.

const dark = matchMedia("(prefers-color-scheme: dark)");
const followScheme = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
followScheme();
dark.addEventListener("change", followScheme);

const calls = document.getElementById("calls");
SwaggerUIBundle({
  domNode: calls,
  url: calls.dataset.source,
  // The default is a service on the Internet.
  validatorUrl: "none",
  displayRequestDuration: true,
  // The calls push the problems down, so the browser's own scrolling to one of them is repeated.
  onComplete: () => document.getElementById(location.hash.slice(1))?.scrollIntoView(),
});
