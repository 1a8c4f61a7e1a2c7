/// Tests of the Dart client. Arguments: a part of the names to run.
library;

import 'relay_test.dart';
import 'runner.dart';
import 'scenarios_test.dart';

Future<void> main(List<String> arguments) {
  scenarioTests();
  relayTests();
  return runTests(only: arguments.firstOrNull ?? '');
}
