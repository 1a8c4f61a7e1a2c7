// duorelay/react: the client as a React hook.
import { useCallback, useEffect, useRef, useState, useSyncExternalStore } from "react";
import { duorelay } from "duorelay";

const CHANGES = ["state", "welcome", "peer", "backplane", "delay"];
const NOTHING = Object.freeze({
  relay: null, state: "connecting", reason: undefined, peer: null, backplane: "up", delay: { up: null, down: null },
});

/**
 * One connection for as long as the component is mounted. It begins after the first paint, so nothing runs where a server
 * renders. The options of the first call count; `url`, `device` and `client` connect anew when they change, and of the
 * functions the newest is called.
 */
export function useDuoRelay(options) {
  const latest = useLatest(options);
  const [relay, setRelay] = useState(null);
  const snapshot = useRef(NOTHING);
  const { url, device, client } = options;

  useEffect(() => {
    const made = duorelay({ ...latest.current, getToken: (request) => latest.current.getToken(request) });
    setRelay(made);
    return () => {
      made.close();
      setRelay(null);
    };
  }, [String(url), device, client]);

  const subscribe = useCallback(
    (changed) => {
      if (relay === null) {
        snapshot.current = NOTHING;
        return () => {};
      }
      let reason;
      const take = () => {
        const { state, peer, backplane, delay } = relay;
        snapshot.current = { relay, state, reason, peer, backplane, delay };
      };
      take(); // React looks at it again right after it subscribes
      const ends = CHANGES.map((type) =>
        relay.on(type, (_, info) => {
          if (type === "state") reason = info;
          take();
          changed();
        }),
      );
      return () => ends.forEach((end) => end());
    },
    [relay],
  );
  return useSyncExternalStore(subscribe, () => snapshot.current, () => NOTHING);
}

/** Calls the newest `listener` at each `type` event of `relay`, which may be null yet. */
export function useRelayEvent(relay, type, listener) {
  const latest = useLatest(listener);
  useEffect(() => relay?.on(type, (...details) => latest.current(...details)), [relay, type]);
}

function useLatest(value) {
  const latest = useRef(value);
  useEffect(() => {
    latest.current = value;
  });
  return latest;
}
