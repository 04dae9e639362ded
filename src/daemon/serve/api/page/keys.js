// Keys for who labels many: arrows or j and k go from card to card, y confirms, s skips, a digit takes
// the label with that number, n goes to the field and Escape out of it. The page works without this.
"use strict";
const cards = () => [...document.querySelectorAll(".card")];
const go = (to) => {
  const all = cards();
  all[Math.max(0, Math.min(all.length - 1, to))]?.querySelector("button:not(.enter)").focus();
};
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const here = event.target.closest(".card");
  const key = event.key;
  if (event.target.matches("input:not([type=checkbox]), textarea")) {
    if (key === "Escape" && here) here.querySelector("button:not(.enter)").focus();
    return;
  }
  const at = here ? cards().indexOf(here) : -1;
  // The page loads anew: the next card is to be where the keys are.
  const press = (chosen) => {
    if (!chosen) return;
    if (chosen.matches("button")) sessionStorage.setItem("keys", "1");
    chosen.click();
  };
  if (key === "j" || key === "ArrowRight") go(at + 1);
  else if (key === "k" || key === "ArrowLeft") go(at - 1);
  else if (!here) return;
  else if (key === "y") press(here.querySelector("button.yes"));
  else if (key === "s") press(here.querySelector("button[value=skip]"));
  else if (key === "n") here.querySelector("[name=label]")?.focus();
  else if (/^[1-9]$/.test(key)) press(here.querySelectorAll("button[name=other], input[name=tag]")[key - 1]);
  else return;
  event.preventDefault();
});
if (sessionStorage.getItem("keys")) {
  sessionStorage.removeItem("keys");
  // After the browser went to the address's fragment, which takes the focus away.
  addEventListener("load", () => setTimeout(() => go(0)));
}
