/// Tests of the Dart client. Arguments: a part of the names to run.
library;

import 'browser_test.dart';
import 'docs_test.dart';
import 'pacing_test.dart';
import 'relay_test.dart';
import 'rules_test.dart';
import 'runner.dart';
import 'samples_test.dart';
import 'scenarios_test.dart';
import 'thin_test.dart';

Future<void> main(List<String> arguments) {
  pacingTests();
  ruleTests();
  scenarioTests();
  relayTests();
  thinTests();
  browserTests();
  sampleTests();
  docsTests();
  return runTests(only: arguments.firstOrNull ?? '');
}
