//! Copying between pages, each named by a grant or, if it is the guest's own, by its frame.
//!
//! Source: `gnttab_copy_one` in `xen/common/grant_table.c`.

use paravane_abi::{
    grant_table::{CopyBytes, CopySide, GrantStatus, gntcopy},
    units::{DomId, GrantRef, MachAddr, Mfn, PAGE_BYTES},
};

use super::pins::{Extent, Purpose, Refused, Uses, control_domain_grant};
use crate::{
    dispatch::narrow,
    domain::{CONTROL_DOMAIN, Domain},
};

/// One use, by a CPU.
const ONCE: Uses = Uses { by_cpu: 1, by_device: 0 };

/// A side of a copy, held for as long as it takes.
struct Held {
    extent: Extent,
    grant: Option<GrantRef>,
    writable: bool,
}

impl Domain {
    /// Copies, and returns the status.
    pub(crate) fn copy_grant(&mut self, request: &CopyBytes) -> GrantStatus {
        match self.try_copy(request) {
            Ok(()) => GrantStatus::Okay,
            Err(refused) => refused.status,
        }
    }

    fn try_copy(&mut self, request: &CopyBytes) -> Result<(), Refused> {
        if request.len == 0 {
            return Ok(());
        }
        let source_is_grant = request.flags & gntcopy::SOURCE_GREF != 0;
        let dest_is_grant = request.flags & gntcopy::DEST_GREF != 0;
        self.check_side(&request.source, source_is_grant)?;
        self.check_side(&request.dest, dest_is_grant)?;
        let source = self.hold(&request.source, source_is_grant, false)?;
        let dest = match self.hold(&request.dest, dest_is_grant, true) {
            Ok(dest) => dest,
            Err(refused) => {
                self.let_go(source);
                return Err(refused);
            }
        };
        let copied = self.copy_bytes(request, source.extent, dest.extent);
        self.let_go(source);
        self.let_go(dest);
        copied
    }

    /// Looks whether the side's domain exists and may be named so.
    fn check_side(&self, side: &CopySide, is_grant: bool) -> Result<(), Refused> {
        let domain = DomId(side.domid);
        if !is_grant && domain != DomId::SELF {
            return Err(Refused::new(
                GrantStatus::PermissionDenied,
                "only DOMID_SELF may name a frame instead of a grant",
            ));
        }
        if [self.id, CONTROL_DOMAIN].contains(&self.named_domain(domain)) {
            Ok(())
        } else {
            Err(Refused::new(GrantStatus::BadDomain, "no such domain"))
        }
    }

    fn hold(&mut self, side: &CopySide, is_grant: bool, writable: bool) -> Result<Held, Refused> {
        // The low half of the union is the grant.
        let grant = is_grant.then_some(GrantRef(narrow(side.place)));
        let extent = match grant {
            Some(reference) if self.named_domain(DomId(side.domid)) != self.id => {
                return Err(control_domain_grant(reference));
            }
            Some(reference) => {
                let purpose = Purpose { writable, mapping: false, count: ONCE };
                self.pin_grant(reference, self.id, purpose)?
            }
            None => Extent::page(side.place),
        };
        if let Err(why) = self.claim(extent.frame, writable) {
            if let Some(reference) = grant {
                self.unpin_grant(reference, writable, ONCE);
            }
            return Err(why.into());
        }
        Ok(Held { extent, grant, writable })
    }

    fn let_go(&mut self, held: Held) {
        self.release(held.extent.frame, held.writable);
        if let Some(reference) = held.grant {
            self.unpin_grant(reference, held.writable, ONCE);
        }
    }

    fn copy_bytes(&self, request: &CopyBytes, source: Extent, dest: Extent) -> Result<(), Refused> {
        let length = usize::from(request.len);
        let crosses = |side: &CopySide| usize::from(side.offset) + length > PAGE_BYTES;
        if crosses(&request.source) || crosses(&request.dest) {
            return Err(Refused::new(GrantStatus::BadCopyArg, "the copy crosses the end of a page"));
        }
        let from = place(&request.source, source, length)?;
        let to = place(&request.dest, dest, length)?;
        let mut bytes = [0; PAGE_BYTES];
        let bytes = &mut bytes[..length];
        let copied = self.memory.read(from, bytes).and_then(|()| self.memory.write(to, bytes));
        copied.map_err(|_| Refused::new(GrantStatus::BadPage, "the frame is no memory"))
    }
}

/// Where a side's bytes are, if the grant covers them.
fn place(side: &CopySide, extent: Extent, length: usize) -> Result<MachAddr, Refused> {
    let (start, end) = (usize::from(extent.start), usize::from(extent.start) + usize::from(extent.length));
    let offset = usize::from(side.offset);
    if offset < start || offset + length > end {
        return Err(Refused::new(GrantStatus::GeneralError, "the grant does not cover these bytes"));
    }
    let Mfn(frame) = extent.frame;
    Mfn(frame)
        .base()
        .map(|base| MachAddr(base.0 + offset as u64))
        .ok_or(Refused::new(GrantStatus::BadPage, "the frame is no memory"))
}
