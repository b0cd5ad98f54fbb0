//! What the authority takes back before its time, in the same numbered list as the digests in quarantine. An entry goes when
//! every certificate that it names has expired.

use bonafide_proto::name::{NodeName, WorkloadName};
use bonafide_proto::revoked::{NODES_MAX, SERIALS_MAX, Serial, WORKLOADS_MAX};

use crate::quarantine::{Quarantine, QuarantineError, check_reason};
use crate::store::{
    BannedNode, By, Event, NodeRecord, QuarantineRecord, Quarantined, RevokedNode, RevokedSerial, StoreError,
};

/// The most nodes that are banned.
const BANNED_MAX: usize = 4096;

impl Quarantine {
    /// What this node's certificates up to now issued is revoked. `out`: the node is no member any more.
    pub(crate) fn revoke_node(
        &self,
        by: &By,
        node: &NodeName,
        through: u64,
        until: i64,
        out: bool,
        reason: &str,
    ) -> Result<bool, QuarantineError> {
        check_reason(reason)?;
        let new = RevokedNode { through, until, out, since: self.now_unix(), reason: reason.to_owned() };
        let event = Event::new("node-revoked", by).with("node", node).with("through", through).with("reason", reason);
        self.revoke(&event, |list| {
            if list.nodes.get(node).is_some_and(|known| known.through >= through && (known.out || !out)) {
                return Ok(false);
            }
            list.nodes.insert(node.clone(), new.clone());
            within(list.nodes.len(), NODES_MAX, "nodes")
        })
    }

    /// A node may be a member again; false if it might. What was revoked stays so: it renews.
    pub(crate) fn lift_node(&self, by: &By, node: &NodeName) -> Result<bool, QuarantineError> {
        self.change(&Event::new("node-lifted", by).with("node", node), |list| match list.nodes.get_mut(node) {
            Some(revoked) if revoked.out => {
                revoked.out = false;
                Ok(true)
            }
            _ => Ok(false),
        })
    }

    /// Nobody may be this workload any more; false if nobody might before.
    ///
    /// # Errors
    /// Any [`QuarantineError`].
    pub fn revoke_workload(&self, by: &By, workload: &WorkloadName, reason: &str) -> Result<bool, QuarantineError> {
        check_reason(reason)?;
        let new = Quarantined { since: self.now_unix(), reason: reason.to_owned() };
        let event = Event::new("workload-revoked", by).with("workload", workload).with("reason", reason);
        self.revoke(&event, |list| {
            if list.workloads.contains_key(workload) {
                return Ok(false);
            }
            list.workloads.insert(workload.clone(), new.clone());
            within(list.workloads.len(), WORKLOADS_MAX, "workloads")
        })
    }

    /// Programs may be this workload again; false if they might.
    ///
    /// # Errors
    /// [`QuarantineError::Store`].
    pub fn lift_workload(&self, by: &By, workload: &WorkloadName) -> Result<bool, QuarantineError> {
        self.change(&Event::new("workload-lifted", by).with("workload", workload), |list| {
            Ok(list.workloads.remove(workload).is_some())
        })
    }

    /// The leaf of this serial number is worth nothing any more; false if it was not before. `until`: it has expired then.
    pub(crate) fn revoke_serial(
        &self,
        by: &By,
        serial: &Serial,
        until: i64,
        reason: &str,
    ) -> Result<bool, QuarantineError> {
        check_reason(reason)?;
        let new = RevokedSerial { until, since: self.now_unix(), reason: reason.to_owned() };
        let event = Event::new("serial-revoked", by).with("serial", serial).with("reason", reason);
        self.revoke(&event, |list| {
            if list.serials.contains_key(serial) {
                return Ok(false);
            }
            list.serials.insert(serial.clone(), new.clone());
            within(list.serials.len(), SERIALS_MAX, "serial numbers")
        })
    }

    /// A leaf counts again; false if it did.
    ///
    /// # Errors
    /// [`QuarantineError::Store`].
    pub fn lift_serial(&self, by: &By, serial: &Serial) -> Result<bool, QuarantineError> {
        self.change(&Event::new("serial-lifted", by).with("serial", serial), |list| {
            Ok(list.serials.remove(serial).is_some())
        })
    }

    /// Nobody joins under this name, or as this machine; false if so before. `known`: the node, if it ever joined.
    pub(crate) fn ban(
        &self,
        by: &By,
        node: &NodeName,
        known: Option<&NodeRecord>,
        reason: &str,
    ) -> Result<bool, QuarantineError> {
        check_reason(reason)?;
        let text = |of: fn(&NodeRecord) -> &String| known.map(of).cloned().unwrap_or_default();
        let (bios_uuid, machine_id) = (text(|record| &record.bios_uuid), text(|record| &record.machine_id));
        let new = BannedNode { bios_uuid, machine_id, since: self.now_unix(), reason: reason.to_owned() };
        let event = Event::new("node-banned", by).with("node", node).with("reason", reason);
        self.revoke(&event, |list| {
            if list.banned.contains_key(node) {
                return Ok(false);
            }
            list.banned.insert(node.clone(), new.clone());
            within(list.banned.len(), BANNED_MAX, "nodes")
        })
    }

    /// It may join again; false if it might.
    pub(crate) fn unban(&self, by: &By, node: &NodeName) -> Result<bool, QuarantineError> {
        self.change(&Event::new("node-unbanned", by).with("node", node), |list| Ok(list.banned.remove(node).is_some()))
    }

    /// All that is revoked now, as it is stored.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub fn revoked(&self) -> Result<QuarantineRecord, StoreError> {
        let mut record = self.record()?;
        forget_expired(&mut record, self.now_unix());
        Ok(record)
    }

    /// Entries go that name only what has expired; false if there is none.
    ///
    /// # Errors
    /// [`QuarantineError::Store`].
    pub(crate) fn expire(&self) -> Result<bool, QuarantineError> {
        let now = self.now_unix();
        let entries = |list: &QuarantineRecord| list.nodes.len() + list.serials.len();
        self.change(&Event::new("revocations-expired", &By::Daemon), |list| {
            let before = entries(list);
            forget_expired(list, now);
            Ok(entries(list) < before)
        })
    }

    /// A change that makes room first.
    fn revoke(
        &self,
        event: &Event,
        edit: impl Fn(&mut QuarantineRecord) -> Result<bool, QuarantineError>,
    ) -> Result<bool, QuarantineError> {
        let now = self.now_unix();
        self.change(event, |list| {
            forget_expired(list, now);
            edit(list)
        })
    }
}

impl QuarantineRecord {
    /// The ban that keeps a node of this name and machine out, by the name that was banned.
    pub(crate) fn ban_of(&self, name: &NodeName, bios_uuid: &str, machine_id: &str) -> Option<&NodeName> {
        if let Some((banned, _)) = self.banned.get_key_value(name) {
            return Some(banned);
        }
        let same = |ours: &str, theirs: &str| !ours.is_empty() && ours == theirs;
        let machine = |ban: &BannedNode| same(&ban.bios_uuid, bios_uuid) || same(&ban.machine_id, machine_id);
        self.banned.iter().find(|(_, ban)| machine(ban)).map(|(banned, _)| banned)
    }
}

fn forget_expired(list: &mut QuarantineRecord, now: i64) {
    list.nodes.retain(|_, revoked| revoked.until >= now);
    list.serials.retain(|_, revoked| revoked.until >= now);
}

fn within(count: usize, most: usize, what: &'static str) -> Result<bool, QuarantineError> {
    if count > most { Err(QuarantineError::FullOf(most, what)) } else { Ok(true) }
}
