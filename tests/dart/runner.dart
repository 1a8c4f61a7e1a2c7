/// Runs tests one after the other, and says what failed.
library;

import 'dart:async';
import 'dart:convert';
import 'dart:io';

final List<(String, Future<void> Function(), Duration)> _tests = [];
final List<FutureOr<void> Function()> _afterwards = [];
String _group = '';

/// Registers tests under a common name.
void group(String name, void Function() register) {
  final outer = _group;
  _group = outer.isEmpty ? name : '$outer: $name';
  register();
  _group = outer;
}

/// Registers a test, which may take so long.
void test(String name, FutureOr<void> Function() body, {Duration limit = const Duration(seconds: 60)}) =>
    _tests.add((
      _group.isEmpty ? name : '$_group: $name',
      () async => await body(),
      limit,
    ));

/// Runs [clear] when the current test has ended, the last one first.
void afterwards(FutureOr<void> Function() clear) => _afterwards.add(clear);

/// Runs all tests whose name contains [only]. The exit code is 1 if one fails.
Future<void> runTests({String only = ''}) async {
  var passed = 0;
  final failed = <String>[];
  for (final (name, body, limit) in _tests) {
    if (!name.contains(only)) continue;
    final watch = Stopwatch()..start();
    final error = await _outcome(body, limit);
    for (final clear in _afterwards.reversed) {
      await clear();
    }
    _afterwards.clear();
    final ms = watch.elapsedMilliseconds;
    if (error == null) {
      passed += 1;
      stdout.writeln('ok $name ($ms ms)');
    } else {
      failed.add(name);
      stdout.writeln('FAILED $name ($ms ms)\n$error');
    }
  }
  stdout.writeln('dart: $passed passed, ${failed.length} failed');
  if (passed + failed.length == 0) stdout.writeln('no test has "$only" in its name');
  exitCode = failed.isEmpty && passed > 0 ? 0 : 1;
}

/// What went wrong, also in a callback of the test; null if all is well.
Future<String?> _outcome(Future<void> Function() body, Duration limit) {
  final outcome = Completer<String?>();
  void end(String? error) {
    if (!outcome.isCompleted) outcome.complete(error);
  }

  runZonedGuarded(() async {
    await body().timeout(limit);
    end(null);
  }, (error, stack) => end('$error\n$stack'));
  return outcome.future;
}

/// A failed expectation.
final class Failure implements Exception {
  Failure(this.message);

  final String message;

  @override
  String toString() => message;
}

/// Fails with [why].
Never fail(String why) => throw Failure(why);

/// [actual] must be [expected]: numbers, texts, lists and maps.
void equal(Object? actual, Object? expected, [String what = '']) {
  final (a, e) = (_text(actual), _text(expected));
  if (a != e) fail('$what: expected ${_brief(e)}, got ${_brief(a)}');
}

String _brief(String text) => text.length < 1000 ? text : '${text.substring(0, 1000)}…';

String _text(Object? value) => jsonEncode(value, toEncodable: (other) => '$other');

/// [condition] must hold.
void check(bool condition, String what) {
  if (!condition) fail(what);
}

/// [act] must throw a [T], which is the answer.
T throws<T extends Object>(void Function() act) {
  try {
    act();
  } on T catch (error) {
    return error;
  }
  fail('expected a $T, nothing was thrown');
}

/// Waits until [condition] holds, at most for [limit].
Future<void> eventually(
  String what,
  FutureOr<bool> Function() condition, {
  Duration limit = const Duration(seconds: 10),
}) async {
  final watch = Stopwatch()..start();
  while (!await condition()) {
    if (watch.elapsed > limit) fail('waited ${limit.inMilliseconds} ms for $what');
    await Future<void>.delayed(const Duration(milliseconds: 10));
  }
}
