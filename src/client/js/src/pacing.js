// The freshness law: how much may be under way on a path that reports what arrives. It is explained beside the relay's
// own copy, src/relay/pacing.rs, line by line; tests/vectors/pacing.json binds the two. Pure: times are milliseconds.

const LOG = 20; //            entries of the log
const TOGETHER = 4; //        messages that leave within this time share an entry
const TARGET = 80; //         the queue that is kept on a path which is the limit
const QUIET = 30; //          a queue up to here is none
const SMOOTH = 200; //        how long the rate remembers
const GROW = 1.25; //         the least growth of the rate without a queue
const SPAN = 50; //           the shortest time over which arrivals count as a rate
const PROBE = 250; //         the first pause between probes of a silent path, and the longest
const PROBE_MOST = 2_000;
const PROVES = 4; //          a report of so many messages without a queue ends a silence
const DRAIN = 1_500; //       the longest drain, the pause before the first, and between two
const DRAIN_FIRST = 1_000;
const DRAIN_EVERY = 20_000;
const CLEAR_AFTER = 500; //   a path that held nothing back for this long is clear
const WINDOW = 32_768; //     reliable bytes that may be unreported while the path is clear: at first, and at most
const WINDOW_MOST = 1_048_576;
const TRIP_SLACK = 20; //     reports within this of the least round trip confirm it; so many make it sure
const SURE = 8;
const LOADED = 5; //          reports with a queue before a lone message may lower the floor
const CLOCK_MOST = 1e15; //   no monotonic clock in milliseconds is further from its origin
const GAP_MOST = 5_000; //    the longest pause between reports that counts
const SLOW_PACE = 500; //     how often reports come while nobody asks for another pace
const FAST_PACE = 100; //     how often a sender asks for reports while the path is the limit
const HICCUP = 150; //        a message that comes so long after the one before may have waited in a queue
const ALERT = 1_000; //       how long the receiver reports at the fast pace after that

/** The sender's side. Kinds are "volatile", "reliable", "control", and "quiet", which makes no report due. */
export class Pacing {
  #log;
  #readAt = -Infinity;
  #reportedAt;
  #floor = Infinity;
  #extra = 0;
  #suspect = 0;
  #floorBytes = 0;
  #peak = 0;
  #grewAt = -Infinity;
  #tripLeast = Infinity;
  #queue = 0;
  #rate = Infinity;
  #finish;
  #waiting = Infinity;
  #gap = SLOW_PACE;
  #leftAt;
  #joinedAt;
  #probe = PROBE;
  #window = WINDOW;
  #heldAt = -Infinity;
  #drainAt = Infinity;
  #stride = 1;
  #due;
  #sure = 0;
  #loaded = 0;
  #draining = false;
  #proof = 0; //              the first probe of a silence, until something shows that the path is clear
  #bulk = 0; //               the last reliable message that left while over half of the window was unreported
  #reporting;

  /** A path of which nothing is known. `messages` have left on it; `reporting` if the other end is known to report. */
  constructor(now, messages, reporting) {
    this.#log = [{ number: messages, bytes: 0, time: now }];
    this.#reportedAt = this.#finish = this.#leftAt = this.#joinedAt = now;
    this.#due = messages;
    this.#reporting = reporting;
  }

  /** Is the path the limit? */
  get isLimited() {
    return this.#rate !== Infinity;
  }

  /** The pace of reports to ask the other end for, in milliseconds. */
  get pace() {
    return this.isLimited || this.#bulk > this.#log[0].number ? FAST_PACE : SLOW_PACE;
  }

  /** The queue on the path, in milliseconds. */
  queue(now) {
    return Math.max(0, this.isLimited ? this.#finish - now : this.#queue);
  }

  onSent(now, bytes, kind) {
    const last = this.#last;
    const number = last.number + 1;
    this.#record({ number, bytes: last.bytes + bytes, time: now });
    this.#finish = Math.max(this.#finish, now) + bytes / this.#rate;
    if (this.#isFull && kind === "reliable") this.#bulk = number;
    if (kind !== "quiet") {
      this.#due = number;
      if (this.#waiting === Infinity) this.#waiting = now;
    }
    if (kind === "volatile" || kind === "reliable") {
      if (now >= this.#silentAt) {
        this.#probe = Math.min(2 * this.#probe, PROBE_MOST);
        this.#proof ||= number;
      }
      this.#leftAt = now;
      if (this.#draining) {
        this.#draining = false;
        this.#drainAt = now + DRAIN_EVERY;
      }
    }
  }

  /** When the next message of this kind may leave: now, or it is asked again then and after each report. */
  mayLeaveAt(now, kind) {
    const probe = this.#leftAt + this.#probe;
    const silentAt = this.#silentAt;
    if (now >= silentAt || (this.#proof && !this.isLimited)) {
      this.#heldAt = now;
      return probe;
    }
    if (!this.isLimited) {
      const isFull = this.#reporting && kind === "reliable" && this.#unreported >= this.#window;
      return isFull ? Math.max(silentAt, probe) : now;
    }
    if (!this.#draining && now >= this.#drainAt) {
      this.#draining = true;
      this.#drainAt = now + DRAIN;
    }
    let at = this.#draining ? this.#drainAt : this.#finish - TARGET;
    // Nothing under way will be reported: only this message can prove a wrong rate wrong.
    if (this.#waiting === Infinity) at = Math.min(this.#finish - TARGET, this.#leftAt + PROBE);
    if (at > now) this.#heldAt = now;
    return at > silentAt ? Math.max(silentAt, probe) : at;
  }

  /** The other end has read so many messages, the last at `readAt` of its clock. False: the report cannot be true. */
  onReport(now, messages, readAt) {
    const log = this.#log;
    const anchor = log[0];
    const news = messages - anchor.number;
    if (!(news >= 0 && messages <= this.#last.number && Math.abs(readAt) <= CLOCK_MOST)) return false;
    if (news === 0) return true;
    const at = log.findIndex((entry) => entry.number >= messages);
    const before = log[at - 1];
    const entry = log[at];
    const isExact = entry.number === messages;
    const count = entry.number - before.number;
    const size = (entry.bytes - before.bytes) / count;
    const earliest = isExact ? entry.time : before.time;
    const reached = isExact ? entry.bytes : before.bytes + Math.floor(size * (messages - before.number));
    const bytes = reached - anchor.bytes;
    const first = anchor.time + (log[1].time - anchor.time) / (log[1].number - anchor.number);

    this.#onLife(now, messages);
    const wasLimited = this.isLimited;
    const wasFull = this.#isFull;
    const span = readAt - this.#readAt;
    if (span > 0 && !wasLimited) this.#peak = Math.max(this.#peak, bytes / span);

    const isFirst = before.bytes - anchor.bytes <= size / 4;
    const isPast = earliest >= this.#reportedAt || earliest + this.#floor + this.#extra >= this.#readAt;
    const isLone = wasLimited && isExact && isFirst && isPast;
    const jumped = this.#onWay(now, readAt, entry.time, earliest, size, isLone);
    this.#onRate(now, readAt, entry.time, first, bytes, jumped);
    if (this.isLimited || messages >= this.#proof || (this.#queue <= QUIET && news >= PROVES)) this.#proof = 0;
    if (!this.#proof) this.#probe = PROBE;
    if (wasFull && !wasLimited && !this.isLimited) this.#window = Math.min(2 * this.#window, WINDOW_MOST);

    this.#readAt = readAt;
    this.#reportedAt = now;
    this.#log = [{ number: messages, bytes: reached, time: earliest }, ...log.slice(isExact ? at + 1 : at)];
    if (this.#log.length < LOG / 2) this.#stride = Math.ceil(this.#stride / 2);
    let finish = readAt - this.#floor - this.#extra;
    for (let i = 1; i < this.#log.length; i += 1) {
      const entry = this.#log[i];
      finish = Math.max(finish, entry.time) + (entry.bytes - this.#log[i - 1].bytes) / this.#rate;
    }
    this.#finish = finish;
    return true;
  }

  get #last() {
    return this.#log[this.#log.length - 1];
  }

  get #unreported() {
    return this.#last.bytes - this.#log[0].bytes;
  }

  get #isFull() {
    return this.#unreported > this.#window / 2;
  }

  get #silentAt() {
    return this.#reporting ? this.#waiting + 2 * this.#gap + 300 : Infinity;
  }

  #record(sent) {
    const log = this.#log;
    const length = log.length;
    if (length > 1 && (sent.number - log[length - 2].number <= this.#stride || sent.time - this.#joinedAt < TOGETHER)) {
      log[length - 1] = sent;
      return;
    }
    if (length === LOG) {
      this.#log = log.filter((_, index) => index % 2 === 0 || index === LOG - 1);
      this.#stride *= 2;
    }
    this.#log.push(sent);
    this.#joinedAt = sent.time;
  }

  /** The path lives. */
  #onLife(now, messages) {
    const pause = now - this.#waiting;
    if (this.#reporting && pause > 0) this.#gap = Math.min(Math.max(pause, 0.9 * this.#gap + 0.1 * pause), GAP_MOST);
    this.#reporting = true;
    this.#waiting = this.#due > messages ? now : Infinity;
  }

  /** Moves the floor and the extra; true when the receiver's clock jumped. */
  #onWay(now, readAt, latest, earliest, size, isLone) {
    const delay = readAt - latest;
    const longest = readAt - earliest;
    const trip = now - latest;
    if (trip < this.#tripLeast - TRIP_SLACK) this.#sure = 0;
    this.#tripLeast = Math.min(this.#tripLeast, trip);
    const room = this.#sure >= SURE ? trip - this.#tripLeast + TRIP_SLACK : trip;
    const jump = delay - this.#floor - this.#extra - room;
    if (longest < this.#floor) {
      this.#floor = longest;
      this.#extra = 0;
      this.#floorBytes = this.isLimited ? 0 : size;
    } else if (jump > 0) {
      // A queue does not grow by more than the round trip: the clock jumped, and the queue is what it was.
      this.#floor += jump;
      if (jump > TARGET && this.isLimited) this.#floor += Math.max(0, room - this.#queue);
    } else if (isLone) {
      this.#onLone(now, longest - size / this.#rate - this.#floor);
    } else if (longest < this.#floor + this.#extra) {
      this.#extra = longest - this.#floor;
    }
    this.#queue = delay - this.#floor - this.#extra;
    this.#loaded = this.#queue > QUIET ? Math.min(this.#loaded + 1, LOADED) : 0;
    if (this.#queue <= QUIET && trip <= this.#tripLeast + TRIP_SLACK) this.#sure = Math.min(this.#sure + 1, SURE);
    return jump > 0;
  }

  /** A message found nothing of ours on the path; it took `extra` longer than the floor. */
  #onLone(now, extra) {
    const suspect = this.#suspect;
    this.#suspect = 0;
    if (extra < 0 && this.#loaded >= LOADED) {
      this.#floor += extra;
      this.#extra = 0;
    } else if (extra <= this.#extra + QUIET) {
      this.#extra = extra > QUIET ? extra : 0;
    } else if (suspect > 0) {
      this.#extra = Math.min(extra, suspect);
    } else {
      this.#suspect = extra;
      if (!this.#draining) this.#drainAt = Math.min(this.#drainAt, now);
    }
  }

  #onRate(now, readAt, latest, first, bytes, jumped) {
    const span = readAt - this.#readAt;
    if (!this.isLimited) {
      if (!jumped && this.#queue > TARGET) {
        this.#rate = bytes / Math.max(1, Math.min(span, readAt - first - this.#floor));
        this.#drainAt = now + DRAIN_FIRST;
      }
      return;
    }
    if (span < 0) return; // its clock went back
    // Not before: the rate of the first reports may be a single late message's.
    if (this.#loaded >= LOADED) {
      const own = Math.min(this.#floorBytes / Math.max(this.#peak, this.#rate), this.#tripLeast);
      this.#floor -= own;
      this.#tripLeast -= own;
      this.#queue += own;
      this.#floorBytes = 0;
    }
    const busy = Math.max(0, readAt - Math.max(this.#readAt, first + this.#floor + this.#extra));
    const most = this.#queue > TARGET && busy > 0 ? (4 * bytes) / busy : Infinity;
    const rate = (Math.min(this.#rate, most) * SMOOTH + bytes) / (busy + SMOOTH);
    if (this.#queue > QUIET) {
      this.#rate = rate;
    } else if (latest >= this.#grewAt && this.#heldAt > this.#grewAt) {
      this.#rate = Math.max(Math.min(Math.max(rate, GROW * this.#rate), 2 * this.#rate), bytes / Math.max(span, SPAN));
      this.#grewAt = now;
    }
    if (this.#queue <= TARGET && now - this.#heldAt > CLEAR_AFTER) {
      this.#window = Math.min(Math.max(this.#rate * 200, WINDOW), WINDOW_MOST);
      this.#rate = Infinity;
      this.#draining = false;
      this.#drainAt = Infinity;
    }
  }
}

/** The receiver's side. */
export class Reporter {
  /** When the next report is due: Infinity if there is nothing to report. */
  dueAt = Infinity;

  #read;
  #readAt = -Infinity;
  #reportedAt = -Infinity;
  #alertUntil = -Infinity;
  #pace = SLOW_PACE;

  /** So many messages were read before. */
  constructor(read) {
    this.#read = read;
  }

  /** The other end asks for a report each so many milliseconds. */
  setPace(everyMs) {
    this.#pace = everyMs;
  }

  onRead(now, makesDue) {
    this.#read += 1;
    if (makesDue) {
      if (now - this.#readAt > HICCUP) this.#alertUntil = now + ALERT;
      const pace = now < this.#alertUntil ? Math.min(this.#pace, FAST_PACE) : this.#pace;
      this.dueAt = Math.min(this.dueAt, Math.max(now, this.#reportedAt + pace));
    }
    this.#readAt = now;
  }

  /** The report that is due, or null: how many messages were read, and when the last of them was. */
  report(now) {
    if (now < this.dueAt) return null;
    this.dueAt = Infinity;
    this.#reportedAt = now;
    return { messages: this.#read, time: this.#readAt };
  }
}
