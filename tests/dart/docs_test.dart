/// The package as pub.dev shows it: a doc comment on each public name, and the
/// fields of its pubspec.
library;

import 'dart:io';

import 'runner.dart';

final Uri _package = Platform.script.resolve('../../src/client/dart/');

/// The files that `lib/duorelay.dart` exports, and itself.
List<File> _exported() {
  final library = File.fromUri(_package.resolve('lib/duorelay.dart'));
  final exports = RegExp(r"^export '([^']+)'", multiLine: true).allMatches(library.readAsStringSync());
  return [library, for (final export in exports) File.fromUri(_package.resolve('lib/${export.group(1)}'))];
}

/// The public names of [source] that have no doc comment. This is no parser: it
/// reads declarations off the package's own layout, two spaces to a level.
List<String> undocumented(String source) {
  final lines = source.split('\n');
  final missing = <String>[];
  var isPublic = true; // the type whose members these are
  var isDocumented = false;
  var isOverride = false;
  for (final line in lines) {
    if (line.trim().isEmpty) {
      isDocumented = isOverride = false;
      continue;
    }
    if (RegExp(r'^ {0,2}///').hasMatch(line)) {
      isDocumented = true;
      continue;
    }
    if (RegExp(r'^ {0,2}@').hasMatch(line)) {
      isOverride = isOverride || line.trim() == '@override';
      continue;
    }
    final type = RegExp(r'^(?:(?:abstract|sealed|final|base|interface|mixin) )*(?:class|enum|extension|typedef) (\w+)').firstMatch(line);
    if (type != null) isPublic = !type.group(1)!.startsWith('_');
    final name = type?.group(1) ?? (isPublic ? _declared(line) : null);
    if (name != null && !name.startsWith('_') && !isDocumented && !isOverride) missing.add(name);
    if (!line.startsWith('    ')) isDocumented = isOverride = false;
  }
  return missing;
}

/// The name that a line at the level of members or of the library declares.
String? _declared(String line) {
  if (RegExp(r'^ *[})\]:/]').hasMatch(line) || line.startsWith('   ')) return null;
  if (RegExp(r'^(import|export|library|part)\b').hasMatch(line)) return null;
  final plain = line.replaceAll(RegExp(r'<[^()]*>'), '').replaceAll(RegExp(r'Function\([^)]*\)'), '');
  final head = plain.split(RegExp(r'[(={;,]|=>')).first;
  // A constructor's name is `Type` or `Type.name`; a value of an enum stands alone.
  final words = RegExp(r'[\w.]+').allMatches(head).map((match) => match.group(0)!).toList();
  return words.isEmpty ? null : words.last.split('.').last;
}

void docsTests() => group('docs', () {
  test('each public name has its comment', () {
    for (final file in _exported()) {
      equal(undocumented(file.readAsStringSync()), const <String>[], file.path);
    }
  });

  test('a name without one is found', () {
    const source = '''
/// A type.
final class Known {
  Known(this.value);

  /// Its value.
  final int value;

  final Map<String, int> more = {};
  int get half => value ~/ 2;
  void act({
    int times = 1,
  }) {
    final inner = times;
  }

  @override
  String toString() => '';
  int _private = 0;
}

enum Kind {
  one,

  /// Two.
  two,
}

final class _Hidden {
  int free = 0;
}
''';
    equal(undocumented(source), ['Known', 'more', 'half', 'act', 'Kind', 'one']);
  });

  test('the pubspec has what pub.dev scores', () {
    final pubspec = File.fromUri(_package.resolve('pubspec.yaml')).readAsStringSync();
    for (final field in ['name', 'description', 'version', 'homepage', 'repository', 'issue_tracker', 'topics', 'environment', 'platforms']) {
      check(RegExp('^$field:', multiLine: true).hasMatch(pubspec), 'no $field');
    }
    final description = RegExp(r'^description: >-\n((?:  .*\n)+)', multiLine: true).firstMatch(pubspec)!.group(1)!;
    final length = description.replaceAll(RegExp(r'\s+'), ' ').trim().length;
    check(length >= 60 && length <= 180, 'a description of $length letters');
    final version = RegExp(r'^version: (.*)$', multiLine: true).firstMatch(pubspec)!.group(1)!;
    final changelog = File.fromUri(_package.resolve('CHANGELOG.md')).readAsStringSync();
    check(changelog.startsWith('## $version\n'), 'the changelog does not begin with $version');
    for (final file in ['LICENSE', 'README.md', 'example/main.dart']) {
      check(File.fromUri(_package.resolve(file)).existsSync(), 'no $file');
    }
  });

  test('each Dart sample is run by a test, or says that it is not', () {
    final samples = <String>[];
    final pages = ['README.md', 'example/README.md', '../README.md', '../../../README.md'];
    for (final page in pages) {
      final text = File.fromUri(_package.resolve(page)).readAsStringSync();
      for (final match in RegExp(r'```dart\n', multiLine: true).allMatches(text)) {
        final before = text.substring(0, match.start);
        final section = before.substring(before.lastIndexOf(RegExp('^#', multiLine: true)));
        final isExcused = RegExp(r'not\s+run\b|do\s+not\s+run\s+this').hasMatch(section);
        samples.add('$page: ${isExcused ? 'says so' : 'runs'}');
      }
    }
    // What runs is in samples_test.dart: one sample of each of these three pages.
    equal(samples, [
      ...['README.md: runs', 'example/README.md: says so', '../README.md: runs', '../README.md: says so'],
      '../../../README.md: runs',
    ]);
  });
});
