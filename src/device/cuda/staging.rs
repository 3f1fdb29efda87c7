//! Copies between host and device that do not hold either up: through pinned memory, ordered by events.

use std::rc::Rc;

use super::driver::{Context, Event, Pinned, Stream};
use crate::device::launcher::DevicePtr;
use crate::error::Result;

/// Pieces of a long copy, and the least that a slot holds.
const PIECE: usize = 4 << 20;
const LEAST: usize = 64 << 10;
/// Slots: that many copies can be under way before the host waits.
const SLOTS: usize = 4;

/// Pinned memory for one copy, and when it may be written again.
struct Slot {
    pinned: Pinned,
    sent: Event,
}

impl Slot {
    /// A slot of at least `len` bytes that no copy reads any more.
    fn ready<'s>(slot: &'s mut Option<Slot>, context: &Rc<Context>, len: usize) -> Result<&'s mut Slot> {
        if let Some(slot) = slot {
            slot.sent.wait()?;
        }
        let fits = slot.as_ref().is_some_and(|slot| slot.pinned.len() >= len);
        if !fits {
            let len = len.max(LEAST).next_power_of_two();
            *slot = Some(Slot { pinned: Pinned::new(context, len)?, sent: Event::new(context)? });
        }
        slot.as_mut().ok_or_else(|| crate::error::Error::Failed("a staging slot is missing".into()))
    }
}

/// Device memory beside the arena that pixels wait in until the work in progress no longer reads the batch before.
struct Landing {
    slot: Option<Slot>,
    memory: Option<(DevicePtr, usize)>,
    /// What was here has been taken over.
    taken: Event,
}

/// The way in.
pub(super) struct Inbox {
    slots: [Option<Slot>; SLOTS],
    next: usize,
    landings: [Landing; 2],
    next_landing: usize,
    beside: Stream,
    context: Rc<Context>,
}

impl Inbox {
    pub(super) fn new(context: &Rc<Context>) -> Result<Self> {
        let landing =
            || Ok::<_, crate::error::Error>(Landing { slot: None, memory: None, taken: Event::new(context)? });
        Ok(Inbox {
            slots: Default::default(),
            next: 0,
            landings: [landing()?, landing()?],
            next_landing: 0,
            beside: Stream::new(context)?,
            context: Rc::clone(context),
        })
    }

    /// A copy in order with the work of `stream`. The host waits only where all slots are under way.
    pub(super) fn send(&mut self, context: &Rc<Context>, stream: &Stream, src: &[u8], dst: DevicePtr) -> Result<()> {
        for (i, piece) in src.chunks(PIECE).enumerate() {
            let slot = Slot::ready(&mut self.slots[self.next], context, piece.len())?;
            slot.pinned.bytes_mut()[..piece.len()].copy_from_slice(piece);
            stream.copy_in(&slot.pinned, piece.len(), dst.offset(i * PIECE))?;
            stream.record(&slot.sent)?;
            self.next = (self.next + 1) % SLOTS;
        }
        Ok(())
    }

    /// A copy that travels while `stream` works: over the bus on a stream of its own, then on the device into its place.
    pub(super) fn send_beside(
        &mut self,
        context: &Rc<Context>,
        stream: &Stream,
        src: &[u8],
        dst: DevicePtr,
    ) -> Result<()> {
        self.next_landing = (self.next_landing + 1) % self.landings.len();
        let landing = &mut self.landings[self.next_landing];
        let memory = match landing.memory {
            Some((ptr, len)) if len >= src.len() => ptr,
            old => {
                if let Some((ptr, _)) = old {
                    landing.taken.wait()?;
                    context.free(ptr);
                    landing.memory = None;
                }
                let ptr = context.alloc(src.len().max(1))?;
                landing.memory = Some((ptr, src.len()));
                ptr
            }
        };
        let slot = Slot::ready(&mut landing.slot, context, src.len())?;
        slot.pinned.bytes_mut()[..src.len()].copy_from_slice(src);
        self.beside.wait(&landing.taken)?;
        self.beside.copy_in(&slot.pinned, src.len(), memory)?;
        self.beside.record(&slot.sent)?;
        stream.wait(&slot.sent)?;
        stream.copy(memory, dst, src.len())?;
        stream.record(&landing.taken)
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        // Nothing may be under way into or out of what is freed now.
        self.beside.synchronize().ok();
        for slot in self.slots.iter().flatten() {
            slot.sent.wait().ok();
        }
        for landing in &self.landings {
            landing.taken.wait().ok();
            if let Some((ptr, _)) = landing.memory {
                self.context.free(ptr);
            }
        }
    }
}

/// Pinned memory and events for copies to the host, kept for the next.
#[derive(Default)]
pub(super) struct Outbox(Vec<(Pinned, Event)>);

impl Outbox {
    /// Memory of at least `len` bytes.
    pub(super) fn take(&mut self, context: &Rc<Context>, len: usize) -> Result<(Pinned, Event)> {
        match self.0.iter().position(|(pinned, _)| pinned.len() >= len) {
            Some(i) => Ok(self.0.swap_remove(i)),
            None => Ok((Pinned::new(context, len.max(256))?, Event::new(context)?)),
        }
    }
    /// Takes it back.
    pub(super) fn give(&mut self, pinned: Pinned, event: Event) {
        self.0.push((pinned, event));
    }
}
