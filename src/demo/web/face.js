// The character: an SVG bust whose features sit on a sphere, so that a turn of the head moves them as in space.
import { clamp } from "./pose.js";

/** One look per device, so that it is plain whose face is whose. */
const LOOKS = {
  desktop: {
    skin: ["#ffdcc2", "#f3b48f"], shade: "#d98d6c", hair: ["#5a5fd8", "#2a2a78"], shine: "#8f94ff", iris: ["#4fa3ff", "#1d4fae"],
    shirt: ["#24c6b4", "#0d8f8a"], collar: "#0b6f70", blush: "#ff7d7d", lips: "#a8473f",
    hairBack: "M91 190C76 92 132 44 200 44s124 48 109 146c6 44 4 84-10 112-14 18-40 14-46-6H147c-6 20-32 24-46 6-14-28-16-68-10-112Z",
    hairFront: "M101 184C88 108 134 60 204 59c70-1 108 48 95 126-5-30-15-49-31-62-28 20-80 24-122 3-22 12-38 30-45 58Z",
    shinePath: "M136 92c20-15 48-20 76-17",
    wing: 1,
    extra: "",
  },
  mobile: {
    skin: ["#f4c6a0", "#dd9a6d"], shade: "#bd7448", hair: ["#ff9b55", "#c9451f"], shine: "#ffc78f", iris: ["#53c58c", "#176a45"],
    shirt: ["#8b67f5", "#5a35c6"], collar: "#44259f", blush: "#ff6f61", lips: "#93382f",
    hairBack: "M97 196C82 100 128 52 200 52s118 48 103 144c-2 22-8 32-16 40H113c-8-8-14-18-16-40Z",
    hairFront: "M102 176c-9-50 8-88 42-104 6-26 34-40 60-38-8 6-12 12-12 18 32-18 74-10 92 22 20 20 23 62 14 102-5-22-11-36-22-46-12-14-24-16-40-12-34 10-64 8-88-8-24 8-38 32-46 66Z",
    shinePath: "M148 88c18-13 42-17 66-12",
    wing: 0,
    extra: '<g fill="#a8542c" opacity=".42"><circle cx="-7" cy="-3" r="2"/><circle cx="0" cy="2" r="2"/><circle cx="7" cy="-3" r="2"/></g>',
  },
};

const CENTER = { x: 200, y: 192 };
const RADIUS = { x: 92, y: 104 };
let faces = 0;

/** A face inside `parent`; `draw(pose, now)` moves it. */
export class Face {
  #parts = {};
  #wing;

  constructor(parent, device) {
    const look = LOOKS[device];
    const id = `face${++faces}`;
    this.#wing = look.wing;
    parent.innerHTML = markup(look, id);
    const svg = parent.firstElementChild;
    for (const part of svg.querySelectorAll("[data-part]")) this.#parts[part.dataset.part] = part;
  }

  draw(pose, now) {
    const turn = { yaw: pose.yaw * 0.35, pitch: pose.pitch * 0.28 };
    const breath = Math.sin(now / 900);
    this.#move("body", `translate(${n(pose.yaw * 3)} ${n(breath * 1.6)})`);
    this.#move("head", `translate(${n(pose.yaw * 11)} ${n(-pose.pitch * 8 + breath * 0.8)}) rotate(${n(pose.roll * 17)} 200 300)`);
    this.#move("hairBack", `translate(${n(-pose.yaw * 8)} ${n(pose.pitch * 6)})`);
    this.#move("hairFront", layer(pose.yaw * 2, -pose.pitch * 7, 1 - Math.abs(pose.yaw) * 0.035, 1 - pose.pitch * 0.05));
    this.#move("hairShadow", layer(pose.yaw * 5, -pose.pitch * 6 + 8, 1 - Math.abs(pose.yaw) * 0.035, 1 - pose.pitch * 0.05));
    this.#move("earL", `translate(${n(-pose.yaw * 9)} ${n(pose.pitch * 9)})`);
    this.#move("earR", `translate(${n(-pose.yaw * 9)} ${n(pose.pitch * 9)})`);
    this.#move("nose", onSphere(turn, 0, 0.3, 1.22));
    const happy = Math.max(0, pose.smile);
    for (const [side, sign] of [["L", -1], ["R", 1]]) {
      this.#move(`cheek${side}`, onSphere(turn, sign * 0.66, 0.37 - 0.04 * happy));
      this.#parts[`cheek${side}`].setAttribute("opacity", n(0.2 + 0.6 * clamp(pose.blush, 0, 1)));
      this.#drawEye(side, sign, turn, pose, happy);
      this.#drawBrow(side, sign, turn, pose[`brow${side}`]);
    }
    this.#drawMouth(turn, pose, happy);
  }

  #drawEye(side, sign, turn, pose, happy) {
    this.#move(`eye${side}`, onSphere(turn, sign * 0.43, 0.03));
    const lid = pose[`eye${side}`];
    const wide = Math.max(0, lid);
    const open = clamp(1 + lid, 0, 1) * (1 - 0.16 * happy);
    // Shut lids hang, and laugh upwards.
    const shut = 9 - 25 * clamp(happy * 1.3 - 0.35, 0, 1);
    const upper = shut + (-36 - 9 * wide - shut) * open;
    const lower = shut + (29 + 4 * wide - 12 * happy - shut) * open;
    const upperLid = `M-20 0C-15 ${n(upper)} 15 ${n(upper)} 20 0`;
    this.#parts[`eyeClip${side}`].setAttribute("d", `${upperLid}C15 ${n(lower)} -15 ${n(lower)} -20 0Z`);
    this.#parts[`white${side}`].setAttribute("d", `${upperLid}C15 ${n(lower)} -15 ${n(lower)} -20 0Z`);
    this.#parts[`lash${side}`].setAttribute("d", `${upperLid}${this.#wing && open > 0.25 ? `M${sign * 17} ${n(-12 * open)}q${sign * 5} 0 ${sign * 8} ${n(-6 * open)}` : ""}`);
    this.#move(`iris${side}`, `translate(${n(pose.gazeX * 7 + pose.yaw * 3)} ${n(-pose.gazeY * 6 - pose.pitch * 3 - 2)}) scale(${n(1 - 0.12 * wide)})`);
  }

  #drawBrow(side, sign, turn, brow) {
    const frown = Math.max(0, -brow);
    this.#move(`brow${side}`, `${onSphere(turn, sign * 0.44, -0.31)} translate(${n(-sign * 5 * frown)} ${n(-brow * 12)}) rotate(${n(-sign * 17 * frown + sign * 5 * Math.max(0, brow))})`);
  }

  #drawMouth(turn, pose, happy) {
    this.#move("mouth", onSphere(turn, 0, 0.55));
    const open = clamp(pose.mouth, 0, 1);
    const width = 25 + 11 * happy - 9 * open * (1 - happy);
    const corner = -pose.smile * 8;
    const upper = pose.smile * 17 - open * 26 * (1 - 0.75 * happy);
    const lower = pose.smile * 17 + open * (48 + 22 * happy);
    const shape = `M${n(-width)} ${n(corner)}Q0 ${n(upper)} ${n(width)} ${n(corner)}Q0 ${n(lower)} ${n(-width)} ${n(corner)}Z`;
    for (const part of ["mouthShape", "mouthClip", "mouthLine"]) this.#parts[part].setAttribute("d", shape);
    this.#move("teeth", `translate(0 ${n((corner + upper) / 2 - 13 + 5 * happy)})`);
    this.#move("tongue", `translate(0 ${n((corner + lower) / 2 + 2)})`);
  }

  #move(part, transform) {
    this.#parts[part].setAttribute("transform", transform);
  }
}

const n = (value) => value.toFixed(2);

function layer(x, y, scaleX, scaleY) {
  return `translate(${n(200 + x)} ${n(120 + y)}) scale(${n(scaleX)} ${n(scaleY)}) translate(-200 -120)`;
}

/** Where a feature at longitude `x`, latitude `y` (radians) is seen, and how much it is foreshortened. */
function onSphere({ yaw, pitch }, x, y, height = 1) {
  const px = CENTER.x + RADIUS.x * height * Math.sin(x + yaw);
  const py = CENTER.y + RADIUS.y * height * Math.sin(y - pitch);
  const sx = clamp(Math.cos(x + yaw) / Math.cos(x), 0.5, 1.12);
  const sy = clamp(Math.cos(y - pitch) / Math.cos(y), 0.6, 1.12);
  return `translate(${n(px)} ${n(py)}) scale(${n(sx)} ${n(sy)})`;
}

function markup(look, id) {
  const gradient = (name, [from, to]) =>
    `<linearGradient id="${id}-${name}" x1="0" y1="0" x2="0" y2="1"><stop offset="0" stop-color="${from}"/><stop offset="1" stop-color="${to}"/></linearGradient>`;
  const fill = (name) => `fill="url(#${id}-${name})"`;
  const head = "M106 176C106 108 146 80 200 80s94 28 94 96c0 68-42 122-94 122s-94-54-94-122Z";
  const eye = (side) => `
    <g data-part="eye${side}">
      <clipPath id="${id}-eye${side}"><path data-part="eyeClip${side}"/></clipPath>
      <path data-part="white${side}" fill="#fffdfb"/>
      <g clip-path="url(#${id}-eye${side})">
        <ellipse cy="-20" rx="26" ry="13" fill="#3a2b4a" opacity=".13"/>
        <g data-part="iris${side}">
          <circle r="15.5" ${fill("iris")}/><circle r="15.5" fill="none" stroke="#14122b" stroke-opacity=".35" stroke-width="2"/>
          <circle r="8" fill="#14122b"/><circle cx="-5" cy="-6" r="5" fill="#fff"/><circle cx="6" cy="6" r="2.4" fill="#fff" opacity=".8"/>
        </g>
      </g>
      <path data-part="lash${side}" fill="none" stroke="#2a1d33" stroke-width="4.6" stroke-linecap="round"/>
    </g>`;
  return `
<svg viewBox="0 0 400 410" preserveAspectRatio="xMidYMax meet" aria-hidden="true" focusable="false">
  <defs>
    <radialGradient id="${id}-skin" cx=".5" cy=".42" r=".62"><stop offset=".45" stop-color="${look.skin[0]}"/><stop offset="1" stop-color="${look.skin[1]}"/></radialGradient>
    <radialGradient id="${id}-blush"><stop offset="0" stop-color="${look.blush}" stop-opacity=".85"/><stop offset="1" stop-color="${look.blush}" stop-opacity="0"/></radialGradient>
    ${gradient("hair", look.hair)}${gradient("iris", [look.iris[1], look.iris[0]])}${gradient("shirt", look.shirt)}
    <clipPath id="${id}-head"><path d="${head}"/></clipPath>
    <clipPath id="${id}-mouth"><path data-part="mouthClip"/></clipPath>
  </defs>
  <g data-part="body">
    <path d="M30 414c4-62 46-88 106-94l64 10 64-10c60 6 102 32 106 94Z" ${fill("shirt")}/>
    <path d="M150 318c8 40 92 40 100 0l14 3c-6 58-122 58-128 0Z" fill="${look.collar}"/>
    <path d="M166 262h68v56c0 28-68 28-68 0Z" fill="${look.skin[1]}"/>
    <path d="M166 276c16 22 52 22 68 0v20c-18 18-50 18-68 0Z" fill="${look.shade}" opacity=".55"/>
  </g>
  <g data-part="head">
    <path data-part="hairBack" d="${look.hairBack}" ${fill("hair")}/>
    <g data-part="earL"><ellipse cx="105" cy="202" rx="15" ry="21" fill="${look.skin[1]}"/><path d="M101 192c-6 6-5 16 1 22" fill="none" stroke="${look.shade}" stroke-width="3" stroke-linecap="round"/></g>
    <g data-part="earR"><ellipse cx="295" cy="202" rx="15" ry="21" fill="${look.skin[1]}"/><path d="M299 192c6 6 5 16-1 22" fill="none" stroke="${look.shade}" stroke-width="3" stroke-linecap="round"/></g>
    <path d="${head}" ${fill("skin")}/>
    <g clip-path="url(#${id}-head)"><path data-part="hairShadow" d="${look.hairFront}" fill="${look.shade}" opacity=".45"/></g>
    <g clip-path="url(#${id}-head)"><ellipse data-part="cheekL" rx="24" ry="17" ${fill("blush")}/><ellipse data-part="cheekR" rx="24" ry="17" ${fill("blush")}/></g>
    <g data-part="nose"><path d="M-6 4Q0 10 7 3" fill="none" stroke="${look.shade}" stroke-width="4" stroke-linecap="round"/>${look.extra}</g>
    <g data-part="mouth">
      <path data-part="mouthShape" fill="#5a1830"/>
      <g clip-path="url(#${id}-mouth)"><ellipse data-part="tongue" rx="21" ry="14" fill="#f0788a"/><rect data-part="teeth" x="-30" y="0" width="60" height="15" rx="6" fill="#fff"/></g>
      <path data-part="mouthLine" fill="none" stroke="${look.lips}" stroke-width="4.2" stroke-linejoin="round" stroke-linecap="round"/>
    </g>
    ${eye("L")}${eye("R")}
    <g data-part="hairFront"><path d="${look.hairFront}" ${fill("hair")}/><path d="${look.shinePath}" fill="none" stroke="${look.shine}" stroke-width="9" stroke-linecap="round" opacity=".6"/></g>
    <path data-part="browL" d="M-18 4Q-2 -8 18 0" fill="none" stroke="${look.hair[1]}" stroke-width="6.5" stroke-linecap="round"/>
    <path data-part="browR" d="M-18 0Q2 -8 18 4" fill="none" stroke="${look.hair[1]}" stroke-width="6.5" stroke-linecap="round"/>
  </g>
</svg>`;
}
