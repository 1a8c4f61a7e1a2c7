/// How much may be under way to the relay, by what the relay reports.
final class Pacing {
  /// Numbers and sizes of messages, as they leave.
  void onSent(int bytes, double now, {required bool reliable}) {}

  /// The relay has read [messages] messages, the last one at [time] by its own
  /// clock.
  void onReport(int messages, double time, double now) {}

  /// How often the relay should report from now on; null where it knows.
  int? takePace() => null;

  /// In how many milliseconds a message of [bytes] may leave; 0 is now.
  double waitFor(int bytes, double now) => 0;
}
