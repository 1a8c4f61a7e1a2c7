import 'clock.dart';

/// Counts what one connection receives, and decides when to report it. The
/// other end paces by the reports; see the protocol, section 4.6.
final class Reporter {
  /// Reports with [report] once [start] was called.
  Reporter(Alarms alarms, this._report) : _clock = alarms.clock {
    _due = alarms.create(_onDue);
  }

  /// The most that a report may wait, unless the other end asks for less.
  static const double usualMs = 500;

  /// Messages that make no report due, or two ends would answer each other
  /// for ever.
  static const Set<String> silent = {'received', 'reports', 'ping', 'pong'};

  final Clock _clock;
  final void Function(int messages, double time) _report;
  late final Alarm _due;
  bool _started = false;
  int _messages = 0;
  double _readAt = 0;
  double _everyMs = usualMs;

  /// Reports from now on. The first report leaves at once.
  void start() {
    _started = true;
    _onDue();
  }

  /// A message was read.
  void onMessage({required bool makesDue}) {
    _messages += 1;
    _readAt = _clock.now;
    if (_started && makesDue && !_due.isSet) _due.after(_everyMs);
  }

  /// The other end asks for a report each [everyMs].
  void onPace(int everyMs) {
    _everyMs = everyMs.clamp(50, 1000).toDouble();
    if (_due.isSet) _due.within(_everyMs);
  }

  /// No report leaves any more.
  void stop() {
    _started = false;
    _due.clear();
  }

  void _onDue() => _report(_messages, _readAt);
}
