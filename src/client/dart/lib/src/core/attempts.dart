import '../types.dart';
import 'affinity.dart';
import 'clock.dart';

/// The numbers and URLs of connection attempts.
final class Attempts {
  /// Attempts at [_url], for the slot of [_device].
  Attempts(this._url, this._device, this._clock);

  final Uri _url;
  final Device? _device;
  final Clock _clock;
  int _last = 0;
  int _withoutWelcome = 0;

  /// The name of this installation; empty before [start].
  String client = '';

  /// The number of the last attempt. It grows even if the clock falls.
  int get last => _last;

  /// Goes on as [client], after its attempt [last].
  void start(String client, int last) {
    this.client = client;
    _last = last;
  }

  /// The URL of the next attempt, for [user].
  Uri next(String? user) {
    _last = _clock.unixMs > _last ? _clock.unixMs : _last + 1;
    final url = socketUrl(user);
    _withoutWelcome += 1;
    return url;
  }

  /// The attempt [holder] of this client holds the slot: our memory of it was
  /// lost, or the clock fell.
  void goAbove(int? holder) {
    if (holder != null && holder > _last) _last = holder;
  }

  /// The relay has welcomed an attempt.
  void onWelcome() => _withoutWelcome = 0;

  /// The URL of the last attempt.
  Uri socketUrl(String? user) => _url.replace(queryParameters: {
        ..._url.queryParametersAll,
        if (_device != null) 'device': _device.name,
        'client': client,
        'attempt': '$_last',
        // Twice without a welcome, the instance that a balancer chooses by it
        // may be full or leaving.
        if (user != null && _withoutWelcome < 2) 'affinity': affinityOf(user),
      });

  /// Where the relay explains the last attempt.
  Uri sessionUrl(String? user) {
    final socket = socketUrl(user);
    return socket.resolve('v1/session').replace(
          scheme: socket.scheme == 'wss' ? 'https' : 'http',
          query: socket.query,
        );
  }
}
