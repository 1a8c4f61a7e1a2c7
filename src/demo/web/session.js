// Who this page is: a user name, the tokens of the demo's identity provider, and which device it plays.

const USER_KEY = "duorelay.demo.user";
const NAME = /^[A-Za-z0-9_-]{1,64}$/;
const ANIMALS = ["otter", "fox", "lynx", "heron", "panda", "koala", "robin", "badger", "gecko", "puffin", "tapir", "wombat"];

const query = new URLSearchParams(location.search);

/** The name in the link (so a scanned code joins the same room), else this browser's own, made up once. */
export function userName() {
  const named = query.get("user");
  let name = NAME.test(named ?? "") ? named : stored();
  if (!name) {
    const random = crypto.getRandomValues(new Uint8Array(9));
    // The name is the only secret of a demo room: long enough not to be met by chance.
    name = `${ANIMALS[random[0] % ANIMALS.length]}-${Array.from(random.subarray(1), (byte) => (byte % 36).toString(36)).join("")}`;
  }
  try {
    localStorage.setItem(USER_KEY, name);
  } catch {
    // Site data is blocked: the name lasts as long as the page.
  }
  return name;
}

function stored() {
  try {
    const name = localStorage.getItem(USER_KEY) ?? "";
    return NAME.test(name) ? name : null;
  } catch {
    return null;
  }
}

/** What the link says, else what the screen looks like: a small one for fingers is a phone's. */
export function deviceHere() {
  const named = query.get("device");
  if (named === "desktop" || named === "mobile") return named;
  const small = Math.min(screen.width, screen.height) < 600;
  return small && matchMedia("(pointer: coarse)").matches ? "mobile" : "desktop";
}

/** Keeps a reload, and a copied link, on the same device. */
export function rememberDevice(device) {
  const url = new URL(location.href);
  url.searchParams.set("device", device);
  history.replaceState(null, "", url);
}

export const otherDevice = (device) => (device === "desktop" ? "mobile" : "desktop");

/** A link that opens this room on the other device. */
export function invitation(base, user, device) {
  const url = new URL("/", base);
  url.searchParams.set("user", user);
  url.searchParams.set("device", otherDevice(device));
  return url.href;
}

/** Tokens of the development identity provider, kept while they last. */
export class Tokens {
  #user;
  #token = null;
  #expiresAt = 0;

  constructor(user) {
    this.#user = user;
  }

  get = async ({ forceRefresh }) => {
    if (forceRefresh || this.#expiresAt * 1000 - Date.now() < 60_000) {
      const response = await fetch("/demo/token", {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify({ user: this.#user }),
      });
      if (!response.ok) throw new Error(`the identity provider answered ${response.status}`);
      const answer = await response.json();
      this.#token = answer.token;
      this.#expiresAt = answer.expires_at;
    }
    return this.#token;
  };
}
