// Text nodes that are seen, against the nearest opaque colour behind them: what has a contrast below 4.5, or is below 9 px.
const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const rgba = (colour) => {
  canvas.clearRect(0, 0, 1, 1);
  canvas.fillStyle = colour;
  canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data];
};
const light = ([r, g, b]) =>
  [r, g, b].map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const behind = (node) => {
  for (let e = node; e; e = e.parentElement) {
    const colour = rgba(getComputedStyle(e).backgroundColor);
    if (colour[3] > 250) return colour;
  }
  return [255, 255, 255, 255];
};
const poor = new Set();
const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walk.nextNode()) {
  const node = walk.currentNode.parentElement;
  if (!walk.currentNode.textContent.trim() || !node.checkVisibility({ visibilityProperty: true, opacityProperty: true })) continue;
  if (node.closest("button:disabled, .visually-hidden, .copybtn, script, style, noscript")) continue;
  const style = getComputedStyle(node);
  const colour = node instanceof SVGElement && !(node instanceof HTMLElement) ? style.fill : style.color;
  const [a, b] = [light(rgba(colour)), light(behind(node))].sort((x, y) => x - y);
  const ratio = (b + 0.05) / (a + 0.05);
  const size = parseFloat(style.fontSize);
  if (ratio < 4.5) poor.add(`${ratio.toFixed(2)}: ${colour} in ${node.tagName}.${node.className} ${walk.currentNode.textContent.trim().slice(0, 30)}`);
  if (size < 9) poor.add(`${size} px: ${walk.currentNode.textContent.trim().slice(0, 30)}`);
}
return [...poor].slice(0, 12);
