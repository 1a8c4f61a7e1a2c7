// Little pictures that fly: each is one reliable message, answered by the other device.

/** Drawn here, since not every system has every emoji. */
export const REACTIONS = {
  heart: { label: "Heart", key: "1", svg: '<path fill="#f0496b" d="M24 42C8 31 3 23 4 15 6 5 18 3 24 13 30 3 42 5 44 15c1 8-4 16-20 27Z"/><path d="M11 15c1-4 4-5 6-5" fill="none" stroke="#fff" stroke-opacity=".7" stroke-width="3" stroke-linecap="round"/>' },
  laugh: { label: "Laugh", key: "2", svg: '<circle cx="24" cy="24" r="20" fill="#ffc83d"/><path d="M11 20q4-6 8 0M29 20q4-6 8 0" fill="none" stroke="#5b3a00" stroke-width="3" stroke-linecap="round"/><path d="M11 26h26c0 9-6 14-13 14s-13-5-13-14Z" fill="#7a1f33"/><path d="M14 27h20v3H14Z" fill="#fff"/>' },
  star: { label: "Star", key: "3", svg: '<path fill="#ffb31a" stroke="#ffb31a" stroke-width="3" stroke-linejoin="round" d="m24 5 5.7 12.5 13.6 1.5-10.1 9.2 2.8 13.4L24 34.8 12 41.6l2.8-13.4L4.7 19l13.6-1.5Z"/><path d="m21 15-2 5" stroke="#fff" stroke-opacity=".7" stroke-width="3" stroke-linecap="round"/>' },
  note: { label: "Song", key: "4", svg: '<path fill="none" stroke="#7a5cf0" stroke-width="5" stroke-linejoin="round" stroke-linecap="round" d="M17 36V12l22-5v24"/><ellipse cx="12" cy="36" rx="8" ry="6.5" fill="#7a5cf0"/><ellipse cx="34" cy="31" rx="8" ry="6.5" fill="#7a5cf0"/>' },
};

export const picture = (name) => `<svg viewBox="0 0 48 48" aria-hidden="true" focusable="false">${REACTIONS[name].svg}</svg>`;

/** Lets a handful of `name` rise over `layer`; one that stands for a while where less motion is wished for. */
export function fly(layer, name, { size = 56, count = 9 } = {}) {
  const reduced = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const { clientWidth: width, clientHeight: height } = layer;
  for (let i = 0; i < (reduced ? 1 : count); i += 1) {
    const particle = document.createElement("div");
    particle.className = "particle";
    particle.innerHTML = picture(name);
    const scale = reduced ? 1.4 : 0.55 + Math.random() * 0.75;
    particle.style.width = `${size * scale}px`;
    const x = reduced ? width / 2 : width * (0.18 + 0.64 * Math.random());
    layer.append(particle);
    const at = (dx, y, by, turn) => `translate(${x + dx}px, ${y}px) translate(-50%, -50%) scale(${by}) rotate(${turn}deg)`;
    const drift = (Math.random() - 0.5) * width * 0.22;
    const frames = reduced
      ? [{ opacity: 0, transform: at(0, height * 0.3, 1, 0) }, { opacity: 1, transform: at(0, height * 0.3, 1, 0), offset: 0.15 }, { opacity: 1, transform: at(0, height * 0.3, 1, 0), offset: 0.8 }, { opacity: 0, transform: at(0, height * 0.3, 1, 0) }]
      : [
          { opacity: 0, transform: at(0, height * 0.95, 0.3, 0) },
          { opacity: 1, transform: at(drift * 0.3, height * 0.72, 1.15, -10), offset: 0.18 },
          { opacity: 1, transform: at(drift * 0.8, height * 0.35, 1, 12), offset: 0.7 },
          { opacity: 0, transform: at(drift, height * 0.06, 0.9, -14) },
        ];
    const flight = particle.animate(frames, { duration: reduced ? 1_800 : 1_700 + Math.random() * 900, delay: reduced ? 0 : i * 55, easing: "cubic-bezier(.25,.7,.4,1)", fill: "both" });
    flight.onfinish = () => particle.remove();
  }
}
