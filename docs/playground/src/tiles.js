// Groups of drawings that are buttons.

import { copyTile, tile } from "./charts.js";
import { view } from "./view.js";

/** A button with a drawing; one of its group is reached by Tab, the others by the arrow keys. */
export function tileButton(name, artist, label, press) {
  const button = document.createElement("button");
  const canvas = document.createElement("canvas");
  copyTile(canvas, tile(view.data, name, artist));
  button.type = "button";
  button.title = label;
  button.setAttribute("aria-label", label);
  button.append(canvas);
  button.addEventListener("click", press);
  return button;
}

/** Fill a box with such buttons. */
export function fillTiles(box, buttons) {
  box.replaceChildren(...buttons);
  buttons.forEach((button, i) => { button.tabIndex = i ? -1 : 0; });
  box.onkeydown = (event) => {
    const across = Math.max(1, Math.floor(box.clientWidth / (buttons[0].offsetWidth + 6)));
    const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -across, ArrowDown: across }[event.key];
    const from = buttons.indexOf(document.activeElement);
    const to = buttons[from + by];
    if (!by) return;
    event.preventDefault();
    if (!to) return;
    buttons[from].tabIndex = -1;
    to.tabIndex = 0;
    to.focus();
  };
}
