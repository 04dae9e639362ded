// Keys for who labels many: arrows or j and k go from card to card, y confirms, s skips, a digit takes
// the label with that number, n goes to the field for another one. The page works without this.
"use strict";
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input")) return;
  const cards = [...document.querySelectorAll(".card")];
  if (!cards.length) return;
  const here = event.target.closest(".card");
  const at = here ? cards.indexOf(here) : -1;
  const go = (to) => cards[Math.max(0, Math.min(cards.length - 1, to))].querySelector("button").focus();
  const press = (chosen) => chosen && chosen.click();
  const key = event.key;
  if (key === "j" || key === "ArrowRight") go(at + 1);
  else if (key === "k" || key === "ArrowLeft") go(at - 1);
  else if (!here) return;
  else if (key === "y") press(here.querySelector("button.yes"));
  else if (key === "s") press(here.querySelector("button[value=skip]"));
  else if (key === "n") here.querySelector("input[name=label]")?.focus();
  else if (/^[1-9]$/.test(key)) press(here.querySelectorAll("button[name=other]")[key - 1]);
  else return;
  event.preventDefault();
});
