//! What goes wrong: instances stop, are cut off or crash, and others notice.

use std::rc::Rc;

use duorelay::backplane::{Event, Users};

use super::{SECOND, Simulation, State};

impl Simulation {
    pub(super) fn pause(self: &Rc<Self>, node: usize) {
        let now = self.network.now.get();
        let until = now + SECOND / 10 + self.network.below(25 * SECOND);
        {
            let mut nodes = self.network.nodes.borrow_mut();
            if nodes[node].paused_until > now {
                return;
            }
            nodes[node].paused_until = until;
            nodes[node].unheard_since.get_or_insert(now);
        }
        let it = Rc::clone(self);
        let go_on = move || {
            let node = &mut it.network.nodes.borrow_mut()[node];
            if !node.is_cut_off && !node.is_dead {
                node.unheard_since = None;
            }
        };
        self.network.at(until, None, Box::new(go_on));
    }

    pub(super) fn cut_off(self: &Rc<Self>, node: usize) {
        {
            let mut nodes = self.network.nodes.borrow_mut();
            if nodes[node].is_cut_off {
                return;
            }
            nodes[node].is_cut_off = true;
            nodes[node].epoch += 1;
            nodes[node].unheard_since.get_or_insert(self.network.now.get());
        }
        let it = Rc::clone(self);
        let down = move || {
            if it.network.is_cut_off(node) {
                it.network.notify(node, Event::Down(Users::All));
            }
        };
        self.network.after(self.network.below(2 * SECOND), Some(node), Box::new(down));
        let it = Rc::clone(self);
        let up = move || {
            it.network.reconnect(node);
            it.network.notify(node, Event::Up(Users::All));
        };
        let length = SECOND / 2 + self.network.below(25 * SECOND);
        self.network.after(length, Some(node), Box::new(up));
    }

    pub(super) fn crash(self: &Rc<Self>, node: usize) {
        {
            let mut nodes = self.network.nodes.borrow_mut();
            let it = &mut nodes[node];
            it.is_dead = true;
            it.unheard_since.get_or_insert(self.network.now.get());
            (it.hub, it.sink) = (None, None);
        }
        self.network.subscribed.borrow_mut().retain(|(of, ..)| *of != node);
        for socket in &mut *self.sockets.borrow_mut() {
            if socket.node == node && socket.state != State::Overwritten {
                socket.state = State::Closed;
                socket.seat = None;
            }
        }
        self.start_instance();
    }

    /// Instances notice who has not been heard of for five seconds.
    pub(super) fn watch(self: &Rc<Self>) {
        for at in self.alive() {
            let it = Rc::clone(self);
            let look = move || it.look(at);
            self.network.after(0, Some(at), Box::new(look));
        }
        let it = Rc::clone(self);
        self.network.after(SECOND, None, Box::new(move || it.watch()));
    }

    pub(super) fn look(&self, at: usize) {
        if self.network.is_cut_off(at) {
            return;
        }
        let now = self.network.now.get();
        let others: Vec<_> = {
            let nodes = self.network.nodes.borrow();
            let unheard = |since: Option<u64>| since.is_some_and(|since| since + 5 * SECOND < now);
            let others = nodes.iter().enumerate().filter(|(node, _)| *node != at);
            others.map(|(_, node)| (node.id, unheard(node.unheard_since))).collect()
        };
        for (other, is_silent) in others {
            let is_news = {
                let silent = &mut self.network.nodes.borrow_mut()[at].silent;
                if is_silent { silent.insert(other) } else { silent.remove(&other) }
            };
            match (is_news, is_silent) {
                (true, true) => self.network.notify(at, Event::Silent(other)),
                (true, false) => self.network.notify(at, Event::Heard(other)),
                (false, _) => {}
            }
        }
    }
}
