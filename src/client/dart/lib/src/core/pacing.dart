// Longer than most files: the whole law is one table of state, and both of its
// ends stand beside each other.
import 'dart:math';

/// What kind of message leaves.
enum Kind {
  /// A frame that a newer one may replace.
  volatile,

  /// A message that must arrive.
  reliable,

  /// What never waits, but makes a report due.
  control,

  /// What never waits and makes no report due: `received`, `reports`, `ping`,
  /// `pong`.
  quiet,
}

/// Entries of the log.
const int _logSize = 20;

/// Messages that leave within this time share an entry.
const double _together = 4;

/// The queue that is kept on a path which is the limit.
const double _target = 80;

/// A queue up to here is none.
const double _quiet = 30;

/// How long the rate remembers.
const double _smooth = 200;

/// The least growth of the rate without a queue.
const double _grow = 1.25;

/// The shortest time over which arrivals count as a rate.
const double _span = 50;

/// The first pause between probes of a silent path, and the longest.
const double _probeFirst = 250;
const double _probeMost = 2000;

/// The longest drain, the pause before the first, and between two.
const double _drain = 1500;
const double _drainFirst = 1000;
const double _drainEvery = 20000;

/// A path that held nothing back for this long is clear.
const double _clearAfter = 500;

/// Reliable bytes that may be unreported while the path is clear: at first,
/// and at most.
const double _windowFirst = 32768;
const double _windowMost = 1048576;

/// Reports within this of the least round trip confirm it; so many make it
/// sure.
const double _tripSlack = 20;
const int _sureMost = 8;

/// A report of so many messages without a queue ends a silence.
const int _proves = 4;

/// Reports with a queue before a lone message may lower the floor.
const int _loadedMost = 5;

/// No monotonic clock in milliseconds is further from its origin.
const double _clockMost = 1e15;

/// The longest pause between reports that counts.
const double _gapMost = 5000;

/// How often reports come while nobody asks for another pace.
const int slowPaceMs = 500;

/// How often a sender asks for reports while the path is the limit.
const int fastPaceMs = 100;

/// A message that comes so long after the one before may have waited in a
/// queue.
const double _hiccup = 150;

/// How long the receiver reports at the fast pace after that.
const double _alert = 1000;

const double _never = double.infinity;

/// "When message [number] had left, [bytes] bytes had, at [time]."
final class _Sent {
  const _Sent(this.number, this.bytes, this.time);

  final int number;
  final double bytes;
  final double time;
}

/// The freshness law: how much may be under way on a path that reports what
/// arrives. The relay holds the same law; `src/relay/pacing.rs` explains it,
/// and `tests/vectors/pacing.json` binds both.
///
/// Times are milliseconds of a monotonic clock. Messages and bytes count from
/// the start of the connection.
final class Pacing {
  /// A path of which nothing is known. [messages] have left on it;
  /// [isReporting] if the other end is known to report.
  Pacing(double now, {int messages = 0, bool isReporting = false})
      : _isReporting = isReporting,
        _reportedAt = now,
        _finish = now,
        _leftAt = now,
        _joinedAt = now,
        _due = messages {
    _log.add(_Sent(messages, 0, now));
  }

  /// Entry 0 is the anchor: everything up to it is reported.
  final List<_Sent> _log = [];
  double _readAt = double.negativeInfinity;
  double _reportedAt;
  double _floor = _never;
  double _extra = 0;
  double _suspect = 0;
  double _floorBytes = 0;
  double _peak = 0;
  double _grewAt = double.negativeInfinity;
  double _tripLeast = _never;
  double _queue = 0;
  double _rate = _never;
  double _finish;
  double _waiting = _never;
  double _gap = slowPaceMs.toDouble();
  double _leftAt;
  double _joinedAt;
  double _probe = _probeFirst;
  double _window = _windowFirst;
  double _heldAt = double.negativeInfinity;
  double _drainAt = _never;
  int _stride = 1;
  int _due;
  int _sure = 0;
  int _loaded = 0;
  bool _isDraining = false;
  bool _isReporting;

  /// The first probe of a silence, until something shows that the path is
  /// clear.
  int? _proof;

  /// The last reliable message that left while over half of the window was
  /// unreported.
  int _bulk = 0;

  /// Bytes that left and are not reported.
  double get unreported => _log.last.bytes - _log.first.bytes;

  /// Whether the path is the limit.
  bool get isLimited => _rate != _never;

  /// The queue on the path, in milliseconds.
  double queue(double now) => max(isLimited ? _finish - now : _queue, 0);

  /// The pace of reports to ask the other end for, in milliseconds.
  int get paceMs =>
      isLimited || _bulk > _log.first.number ? fastPaceMs : slowPaceMs;

  bool get _isFull => unreported > _window / 2;

  double get _silentAt => _isReporting ? _waiting + 2 * _gap + 300 : _never;

  /// A message of so many bytes left.
  void onSent(double now, int bytes, Kind kind) {
    final last = _log.last;
    final sent = _Sent(last.number + 1, last.bytes + bytes, now);
    _record(sent);
    _finish = max(_finish, now) + bytes / _rate;
    if (kind == Kind.reliable && _isFull) _bulk = sent.number;
    if (kind != Kind.quiet) {
      _due = sent.number;
      if (_waiting == _never) _waiting = now;
    }
    if (kind != Kind.volatile && kind != Kind.reliable) return;
    if (now >= _silentAt) {
      _probe = min(2 * _probe, _probeMost);
      _proof ??= sent.number;
    }
    _leftAt = now;
    if (!_isDraining) return;
    _isDraining = false;
    _drainAt = now + _drainEvery;
  }

  void _record(_Sent sent) {
    final length = _log.length;
    final joins = length > 1 &&
        (sent.number - _log[length - 2].number <= _stride ||
            sent.time - _joinedAt < _together);
    if (joins) {
      _log.last = sent;
      return;
    }
    if (length == _logSize) {
      for (var place = length - 3; place > 0; place -= 2) {
        _log.removeAt(place);
      }
      _stride *= 2;
    }
    _log.add(sent);
    _joinedAt = sent.time;
  }

  /// When the next message of this kind may leave: now, or the answer is asked
  /// for again then and after each report.
  double mayLeaveAt(double now, Kind kind) {
    final probe = _leftAt + _probe;
    final silentAt = _silentAt;
    if (now >= silentAt || (_proof != null && !isLimited)) {
      _heldAt = now;
      return probe;
    }
    if (!isLimited) {
      final isFull =
          _isReporting && kind == Kind.reliable && unreported >= _window;
      return isFull ? max(silentAt, probe) : now;
    }
    if (!_isDraining && now >= _drainAt) {
      _isDraining = true;
      _drainAt = now + _drain;
    }
    final drains = _isDraining && _waiting != _never;
    var at = drains ? _drainAt : _finish - _target;
    // Where nothing under way will be reported, only this message can prove a
    // wrong rate wrong.
    if (_waiting == _never) at = min(at, _leftAt + _probeFirst);
    if (at > now) _heldAt = now;
    return at > silentAt ? max(silentAt, probe) : at;
  }

  /// The other end has read so many messages, the last of them at [readAt] of
  /// its own clock. False: it claims more than was sent, goes back, or is not a
  /// number.
  bool onReport(double now, int messages, double readAt) {
    final anchor = _log.first;
    final news = messages - anchor.number;
    if (news < 0 || messages > _log.last.number) return false;
    if (readAt.isNaN || readAt.abs() > _clockMost) return false;
    if (news == 0) return true;
    final at = _log.indexWhere((entry) => entry.number >= messages);
    final entry = _log[at];
    final before = _log[at - 1];
    final isExact = entry.number == messages;
    final count = entry.number - before.number;
    final size = (entry.bytes - before.bytes) / count;
    final share = (messages - before.number) / count;
    final bytesTo =
        before.bytes + ((entry.bytes - before.bytes) * share).truncate();
    final earliest = isExact ? entry.time : before.time;
    final reached =
        _Sent(messages, isExact ? entry.bytes : bytesTo, earliest);
    final bytes = reached.bytes - anchor.bytes;
    final first = anchor.time +
        (_log[1].time - anchor.time) / (_log[1].number - anchor.number);

    _onLife(now, messages);
    final wasLimited = isLimited;
    final wasFull = _isFull;
    final span = readAt - _readAt;
    if (span > 0 && span.isFinite && !wasLimited) {
      _peak = max(_peak, bytes / span);
    }

    final isFirst = before.bytes - anchor.bytes <= size / 4;
    final isPast =
        earliest >= _reportedAt || earliest + _floor + _extra >= _readAt;
    final isLone = wasLimited && isExact && isFirst && isPast;
    final jumped = _onWay(now, readAt, entry.time, earliest, size, isLone);
    _onRate(now, readAt, entry.time, first, bytes, jumped);
    final proof = _proof;
    if (isLimited ||
        proof == null ||
        messages >= proof ||
        (_queue <= _quiet && news >= _proves)) {
      _proof = null;
      _probe = _probeFirst;
    }
    if (!wasLimited && !isLimited && wasFull) {
      _window = min(2 * _window, _windowMost);
    }

    _readAt = readAt;
    _reportedAt = now;
    _log
      ..removeRange(0, isExact ? at + 1 : at)
      ..insert(0, reached);
    if (_log.length < _logSize / 2) _stride = max(_stride ~/ 2, 1);
    _finish = readAt - _floor - _extra;
    for (var place = 1; place < _log.length; place += 1) {
      final took = _log[place].bytes - _log[place - 1].bytes;
      _finish = max(_finish, _log[place].time) + took / _rate;
    }
    return true;
  }

  /// The path lives.
  void _onLife(double now, int messages) {
    final pause = now - _waiting;
    if (_isReporting && pause > 0) {
      _gap = min(max(pause, 0.9 * _gap + 0.1 * pause), _gapMost);
    }
    _isReporting = true;
    _waiting = _due > messages ? now : _never;
  }

  /// Moves the floor and the extra; true when the receiver's clock jumped.
  bool _onWay(
    double now,
    double readAt,
    double latest,
    double earliest,
    double size,
    bool isLone,
  ) {
    final delay = readAt - latest;
    final longest = readAt - earliest;
    final trip = now - latest;
    if (trip < _tripLeast - _tripSlack) _sure = 0;
    _tripLeast = min(_tripLeast, trip);
    final room = _sure >= _sureMost ? trip - _tripLeast + _tripSlack : trip;
    final jump = delay - _floor - _extra - room;
    final jumped = jump > 0;
    if (longest < _floor) {
      _floor = longest;
      _extra = 0;
      _floorBytes = isLimited ? 0 : size;
    } else if (jumped) {
      // A queue does not grow by more than the round trip: the clock jumped,
      // and the queue is what it was.
      _floor += jump;
      if (isLimited && jump > _target) _floor += max(room - _queue, 0);
    } else if (isLone) {
      _onLone(now, longest - size / _rate - _floor);
    } else if (longest < _floor + _extra) {
      _extra = longest - _floor;
    }
    _queue = delay - _floor - _extra;
    _loaded = _queue > _quiet ? min(_loaded + 1, _loadedMost) : 0;
    if (_queue <= _quiet && trip <= _tripLeast + _tripSlack) {
      _sure = min(_sure + 1, _sureMost);
    }
    return jumped;
  }

  /// A message found nothing of ours on the path; it took [extra] longer than
  /// the floor.
  void _onLone(double now, double extra) {
    if (extra < 0 && _loaded >= _loadedMost) {
      _floor += extra;
      _extra = 0;
      _suspect = 0;
    } else if (extra <= _extra + _quiet) {
      _extra = extra > _quiet ? extra : 0;
      _suspect = 0;
    } else if (_suspect > 0) {
      _extra = min(extra, _suspect);
      _suspect = 0;
    } else {
      _suspect = extra;
      if (!_isDraining) _drainAt = min(_drainAt, now);
    }
  }

  void _onRate(
    double now,
    double readAt,
    double latest,
    double first,
    double bytes,
    bool jumped,
  ) {
    if (!isLimited) {
      if (jumped || _queue <= _target) return;
      final start = max(_readAt, first + _floor);
      _rate = bytes / max(readAt - start, 1);
      _drainAt = now + _drainFirst;
      return;
    }
    final span = readAt - _readAt;
    // Its clock went back.
    if (span < 0) return;
    // Not before: the rate of the first reports may be a single late
    // message's.
    if (_loaded >= _loadedMost && _floorBytes > 0) {
      final own = min(_floorBytes / max(_peak, _rate), _tripLeast);
      _floor -= own;
      _tripLeast -= own;
      _queue += own;
      _floorBytes = 0;
    }
    final double busy =
        max(readAt - max(_readAt, first + _floor + _extra), 0);
    final most = _queue > _target && busy > 0 ? 4 * bytes / busy : _never;
    final rate = (min(_rate, most) * _smooth + bytes) / (busy + _smooth);
    if (_queue > _quiet) {
      _rate = rate;
    } else if (latest >= _grewAt && _heldAt > _grewAt) {
      final grown = min(max(rate, _grow * _rate), 2 * _rate);
      _rate = max(grown, bytes / max(span, _span));
      _grewAt = now;
    }
    if (_queue <= _target && now - _heldAt > _clearAfter) {
      _window = min(max(_rate * 200, _windowFirst), _windowMost);
      _rate = _never;
      _isDraining = false;
      _drainAt = _never;
    }
  }
}

/// The receiver's side of the law: when a report of what was read is due.
final class Reporter {
  /// So many messages were read before.
  Reporter([this._read = 0]);

  int _read;
  double _dueAt = _never;
  double _readAt = double.negativeInfinity;
  double _reportedAt = double.negativeInfinity;
  double _alertUntil = double.negativeInfinity;

  /// How often the other end asks for a report, in milliseconds.
  int paceMs = slowPaceMs;

  /// When the next report is due: infinite if there is nothing to report.
  double get dueAt => _dueAt;

  /// A message was read.
  void onRead(double now, {required bool makesDue}) {
    _read += 1;
    if (makesDue) {
      if (now - _readAt > _hiccup) _alertUntil = now + _alert;
      final pace = now < _alertUntil ? min(paceMs, fastPaceMs) : paceMs;
      _dueAt = min(_dueAt, max(now, _reportedAt + pace));
    }
    _readAt = now;
  }

  /// The report that is due: how many messages were read, and when the last of
  /// them was.
  ({int messages, double time})? report(double now) {
    if (now < _dueAt) return null;
    _dueAt = _never;
    _reportedAt = now;
    return (messages: _read, time: _readAt);
  }
}
