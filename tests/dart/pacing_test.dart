/// The freshness law against the vectors that bind all its copies; their
/// format is described in tests/model/pacing_vectors.rs.
library;

import 'dart:convert';
import 'dart:io';

import 'package:duorelay/src/core/pacing.dart';

import 'runner.dart';

void pacingTests() {
  final file = File.fromUri(Platform.script.resolve('../vectors/pacing.json'));
  final vectors = jsonDecode(file.readAsStringSync()) as Map<String, Object?>;
  group('pacing', () {
    for (final vector in (vectors['pacing']! as List).cast<Map<String, Object?>>()) {
      test('sender: ${vector['name']}', () {
        final [now as num, messages as int, isReporting as bool] = vector['new']! as List;
        final pacing = Pacing(now.toDouble(), messages: messages, isReporting: isReporting);
        for (final (place, step) in (vector['steps']! as List).cast<List<Object?>>().indexed) {
          _sender(pacing, step, 'step $place, $step');
        }
      });
    }
    for (final vector in (vectors['reporter']! as List).cast<Map<String, Object?>>()) {
      test('receiver: ${vector['name']}', () {
        final reporter = Reporter((vector['new']! as List).single as int);
        for (final (place, step) in (vector['steps']! as List).cast<List<Object?>>().indexed) {
          _receiver(reporter, step, 'step $place, $step');
        }
      });
    }
  });
}

double _ms(Object? value) => (value! as num).toDouble();

void _near(double actual, Object? expected, String what) {
  final wanted = expected == null ? double.infinity : _ms(expected);
  final near = actual == wanted || (actual - wanted).abs() <= 1e-6 * (1 + wanted.abs());
  check(near, '$what: expected $wanted, got $actual');
}

void _sender(Pacing pacing, List<Object?> step, String what) {
  final now = _ms(step[1]);
  switch (step[0]) {
    case 'sent':
      pacing.onSent(now, step[2]! as int, Kind.values.byName(step[3]! as String));
    case 'may':
      _near(pacing.mayLeaveAt(now, Kind.values.byName(step[2]! as String)), step[3], what);
    case 'report':
      final readAt = step[3] == null ? double.nan : _ms(step[3]);
      equal(pacing.onReport(now, step[2]! as int, readAt), step[4], what);
      if (step[4] != true) return;
      equal(pacing.isLimited, step[5], what);
      equal(pacing.paceMs, step[6], what);
      _near(pacing.queue(now), step[7], what);
    default:
      fail('an unknown step: $what');
  }
}

void _receiver(Reporter reporter, List<Object?> step, String what) {
  switch (step[0]) {
    case 'pace':
      reporter.paceMs = step[1]! as int;
    case 'read':
      reporter.onRead(_ms(step[1]), makesDue: step[2]! as bool);
      _near(reporter.dueAt, step[3], what);
    case 'report':
      final report = reporter.report(_ms(step[1]));
      equal(report?.messages, step[2], what);
      _near(report!.time, step[3], what);
    default:
      fail('an unknown step: $what');
  }
}
