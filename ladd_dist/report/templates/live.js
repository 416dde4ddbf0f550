// Keeps the place on the page over its reloads, and says when they bring nothing new.
const place = "scroll of " + location.pathname;
const told = document.getElementById("status"), stale = document.getElementById("stale");
history.scrollRestoration = "manual";
scrollTo(0, Number(sessionStorage.getItem(place)));
const keep = () => sessionStorage.setItem(place, scrollY);
for (const moment of ["scroll", "pagehide"]) addEventListener(moment, keep);
const watch = () => {
  const age = Date.now() / 1000 - Number(told.dataset.written);
  stale.hidden = !document.querySelector("meta[http-equiv=refresh]") || age < Number(told.dataset.patience);
  stale.firstElementChild.textContent = age < 7200 ? Math.round(age / 60) + " minutes" : Math.round(age / 3600) + " hours";
};
watch();
setInterval(watch, 1000);
