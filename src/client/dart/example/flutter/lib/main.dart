// A Flutter screen that streams touches to the user's desktop.
//
// NOT RUN by the tests of this repository: they have a Dart VM, and neither
// Flutter nor Firebase. `flutterfire configure` writes firebase_options.dart.
import 'dart:async';
import 'dart:typed_data';

import 'package:connectivity_plus/connectivity_plus.dart';
import 'package:duorelay/duorelay.dart';
import 'package:firebase_auth/firebase_auth.dart';
import 'package:firebase_core/firebase_core.dart';
import 'package:flutter/material.dart';

import 'firebase_options.dart';

Future<void> main() async {
  WidgetsFlutterBinding.ensureInitialized();
  await Firebase.initializeApp(options: DefaultFirebaseOptions.currentPlatform);
  runApp(const MaterialApp(home: TouchScreen()));
}

/// Sends where the finger is, thirty times a second or less.
class TouchScreen extends StatefulWidget {
  const TouchScreen({super.key});

  @override
  State<TouchScreen> createState() => _TouchScreenState();
}

class _TouchScreenState extends State<TouchScreen> {
  late final DuoRelay _relay;
  late final AppLifecycleListener _lifecycle;
  late final StreamSubscription<User?> _user;
  late final StreamSubscription<List<ConnectivityResult>> _network;

  @override
  void initState() {
    super.initState();
    _relay = DuoRelay(
      Uri.parse('wss://relay.example.com/ws'),
      // Null while nobody is signed in: the relay then waits for `connect()`.
      getToken: ({required forceRefresh}) async =>
          FirebaseAuth.instance.currentUser?.getIdToken(forceRefresh),
    );
    // Who is signed in. `connect()` changes nothing for the same user.
    _user = FirebaseAuth.instance.idTokenChanges().listen(
          (user) => user == null ? _relay.signedOut() : _relay.connect(),
        );
    // Phones freeze sockets in the background.
    _lifecycle = AppLifecycleListener(
      onPause: _relay.background,
      onResume: _relay.resume,
    );
    // From Wi-Fi to cellular, the old socket hears nothing more.
    _network = Connectivity()
        .onConnectivityChanged
        .listen((_) => _relay.networkChanged());
    _relay.messages.listen((message) => debugPrint('${message.data}'));
  }

  @override
  void dispose() {
    _lifecycle.dispose();
    unawaited(_user.cancel());
    unawaited(_network.cancel());
    unawaited(_relay.close());
    super.dispose();
  }

  void _onTouch(DragUpdateDetails details) {
    final place = Float32List.fromList(
      [details.localPosition.dx, details.localPosition.dy],
    );
    // Volatile: a place that waits is replaced by the next one.
    _relay.sendFrame(0x01, place.buffer.asUint8List());
  }

  @override
  Widget build(BuildContext context) {
    return Scaffold(
      body: GestureDetector(
        onPanUpdate: _onTouch,
        child: StreamBuilder<RelayStatus>(
          stream: _relay.statuses,
          initialData: _relay.status,
          builder: (context, status) => Center(
            child: Text('${status.data}'),
          ),
        ),
      ),
      floatingActionButton: FloatingActionButton(
        onPressed: () => _relay.send({'button': true}),
        child: const Icon(Icons.touch_app),
      ),
    );
  }
}
