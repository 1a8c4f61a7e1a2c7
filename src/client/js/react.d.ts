/** duorelay/react: the client as a React hook. */
import type { Delay, DuoRelay, Events, Options, Peer, State, StateInfo } from "duorelay";

export interface Snapshot {
  /** Null until the component has been painted once, and where a server renders. */
  relay: DuoRelay | null;
  state: State;
  /** Why it is in this state. */
  reason: StateInfo | undefined;
  peer: Peer | null;
  backplane: "up" | "down";
  delay: Delay;
}

/**
 * One connection for as long as the component is mounted. The options of the first call count; `url`, `device` and
 * `client` connect anew when they change, and of `getToken` the newest is called.
 */
export function useDuoRelay(options: Options): Snapshot;

/** Calls the newest `listener` at each `type` event of `relay`, which may be null yet. */
export function useRelayEvent<Type extends keyof Events>(relay: DuoRelay | null, type: Type, listener: Events[Type]): void;
