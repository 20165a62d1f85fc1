//! What must hold once a history has come to rest: every event is in exactly one place, and every number is that of its rows.

use std::collections::BTreeSet;
use std::sync::Arc;

use event_store::{Columns, EventStore, StoreError};
use query::read::{Page, PageRequest, read_page_by};
use query::trees::Trees;
use timeline::tally::{Counts, Node, ROOT_CELL, Root};
use timeline::time::DAY_MS;
use timeline::{EventType, Id, Position, Span, Subject, TimelineId, Timestamp, TypeSet};

use super::broker::{Broker, READ};
use super::plan::{NEWEST, Plan, Row};
use super::sim::{BEGIN, Sim};
use super::sim_store::SimStore;
use super::{RETENTION_MS, SKEW_MAX_MS};

/// The types of all that may show.
const SHOWN: TypeSet = TypeSet::SHOWN;

/// What is looked at.
pub(crate) struct Ledger<'a> {
    pub(crate) sim: &'a Sim,
    pub(crate) store: &'a SimStore,
    pub(crate) broker: &'a Broker,
    pub(crate) plan: &'a Plan,
    /// What those who read meanwhile have seen.
    pub(crate) trees: &'a Trees,
}

/// What of a timeline is asked for.
struct Filter {
    types: TypeSet,
    span: Span,
}

/// Some types and some stretch of the time in which things happen.
fn some_filter(sim: &Sim) -> Filter {
    let types = SHOWN.iter().filter(|_| sim.chance(0.5)).fold(TypeSet::default(), TypeSet::with);
    let at = |steps: u64| Position::at_start_of(BEGIN.plus_ms(steps.cast_signed() * 500 - 10_000));
    let (from, until) = (at(sim.random(0..10)), at(sim.random(6..20)));
    Filter { types, span: Span { from, until } }
}

/// Reads some page of a timeline while its owner writes, as far as the store answers: what is there need not be all yet.
pub(crate) async fn read_meanwhile(sim: Sim, store: Arc<SimStore>, trees: Arc<Trees>, id: TimelineId) {
    let Filter { types, span } = some_filter(&sim);
    let request = PageRequest { types, span, campaign: None, offset: 3 * sim.random(0..4), limit: 3 };
    let Ok(page) = read_page_by(&trees, store.as_ref(), &id, &request).await else { return };
    let asked = |row: &timeline::Row| {
        request.types.contains(row.key.event_type) && request.span.contains(&row.key.position)
    };
    assert!(page.rows.iter().all(asked), "{id:?} {request:?}: {page:?}");
    assert!(
        page.rows.len() as u64 <= page.total.saturating_sub(request.offset),
        "{id:?} {request:?}: {page:?}"
    );
}

impl Ledger<'_> {
    /// What does not hold.
    pub(crate) async fn check(&self) -> Result<(), String> {
        for topic in READ {
            if !self.broker.is_done(topic) {
                return Err(format!("{topic:?} is not done"));
            }
        }
        self.check_dead()?;
        self.check_waiting()?;
        self.check_rows()?;
        self.check_references().await?;
        self.check_timelines().await?;
        self.check_expired().await
    }

    fn check_dead(&self) -> Result<(), String> {
        let dead = self.broker.dead();
        if dead.iter().any(|letter| !letter.headers.iter().any(|(name, _)| *name == "backstamp.code")) {
            return Err("a dead letter does not say why".into());
        }
        let dead: BTreeSet<Vec<u8>> = dead.into_iter().filter_map(|letter| letter.value).collect();
        if dead == self.plan.dead {
            Ok(())
        } else {
            Err(format!("{} dead letters, want {}", dead.len(), self.plan.dead.len()))
        }
    }

    /// All that must wait do. Of those that show whole one may stand there still that a crash left behind: it is joined again where
    /// its send is repeated, and nowhere counted.
    fn check_waiting(&self) -> Result<(), String> {
        let waiting = self.store.waiting_ids();
        if let Some(id) = self.plan.waiting.difference(&waiting).next() {
            return Err(format!("{id} does not wait"));
        }
        match waiting.iter().find(|id| !self.plan.waiting.contains(*id) && !self.plan.projected.contains(*id))
        {
            Some(id) => Err(format!("{id} waits")),
            None => Ok(()),
        }
    }

    /// Nothing stands in a row that should not.
    fn check_rows(&self) -> Result<(), String> {
        let wrong = |(_, key): &(TimelineId, _)| {
            let key: &timeline::row::RowKey = key;
            !self.plan.projected.contains(&*key.position.id)
        };
        if let Some((id, key)) = self.store.living_rows().iter().find(|row| wrong(row)) {
            return Err(format!("{id:?}: {key:?} shows"));
        }
        let Some((contact, erased)) = &self.plan.forgotten else { return Ok(()) };
        let erased: BTreeSet<&str> = erased.iter().map(|(_, id, _)| id.as_str()).collect();
        let is_erased =
            |(id, key): &(TimelineId, timeline::row::RowKey)| match (&id.subject, &contact.subject) {
                (Subject::Campaign(_), _) => {
                    key.event_type != EventType::Erased && erased.contains(&*key.position.id)
                }
                (Subject::Contact(one) | Subject::ContactCampaign(one, _), Subject::Contact(other)) => {
                    one == other
                }
                _ => false,
            };
        match self.store.living_rows().iter().find(|row| is_erased(row)) {
            Some((id, key)) => Err(format!("{id:?}: {key:?} of a forgotten contact stands")),
            None => Ok(()),
        }
    }

    async fn check_references(&self) -> Result<(), String> {
        let keys: Vec<_> = self.plan.references.keys().cloned().collect();
        let stored = self.store.read_references(&keys).await.unwrap();
        for ((key, want), stored) in self.plan.references.iter().zip(stored) {
            if stored.as_ref() != Some(want) {
                return Err(format!("{key}: {stored:?}, want {want:?}"));
            }
        }
        Ok(())
    }

    fn kept(&self) -> Span {
        let cut = self.sim.now().minus_ms(RETENTION_MS);
        Span { from: Position::at_start_of(cut), until: Position::max() }
    }

    async fn check_timelines(&self) -> Result<(), String> {
        let none = BTreeSet::new();
        for id in &self.plan.known {
            if !self.store.is_known(id).await.unwrap() {
                return Err(format!("{id:?} is not known"));
            }
            let rows = self.plan.want.get(id).unwrap_or(&none);
            self.check_tree(id).await?;
            self.check_pages(id, None, rows).await?;
            let Subject::Contact(contact) = id.subject else { continue };
            for (other, of_campaign) in &self.plan.want {
                let Subject::Campaign(campaign) = &other.subject else { continue };
                let both = rows.intersection(of_campaign).cloned().collect();
                self.check_pages(id, Some(campaign), &both).await?;
                self.check_tree(&TimelineId::contact_campaign(&id.account, contact, campaign)).await?;
            }
        }
        Ok(())
    }

    /// Everything, and something of it.
    fn filters(&self) -> [Filter; 3] {
        let some = || some_filter(self.sim);
        [Filter { types: SHOWN, span: self.kept() }, some(), some()]
    }

    /// Every page of a timeline, or of what a contact's has of one campaign, shows what it should, and the total is right.
    async fn check_pages(
        &self,
        id: &TimelineId,
        campaign: Option<&Id>,
        rows: &BTreeSet<Row>,
    ) -> Result<(), String> {
        for (number, filter) in self.filters().into_iter().enumerate() {
            let matches = |row: &&Row| {
                let position = Position { at: Timestamp(row.0), id: row.1.as_str().into() };
                filter.span.contains(&position)
                    && filter.types.iter().any(|event_type| event_type as u8 == row.2)
            };
            let want: Vec<&Row> = rows.iter().rev().filter(matches).collect();
            for limit in if number == 0 { vec![2, 100] } else { vec![3] } {
                self.check_filtered(id, campaign, &filter, limit, &want).await?;
            }
        }
        Ok(())
    }

    async fn check_filtered(
        &self,
        id: &TimelineId,
        campaign: Option<&Id>,
        filter: &Filter,
        limit: usize,
        want: &[&Row],
    ) -> Result<(), String> {
        let mut got = Vec::new();
        for page in 0.. {
            let request = PageRequest {
                types: filter.types,
                span: filter.span.clone(),
                campaign: campaign.cloned(),
                offset: page * limit as u64,
                limit,
            };
            let read = self.read(id, &request).await.map_err(|error| error.chain().to_string())?;
            if read.total != want.len() as u64 {
                let (total, by) = (read.total, read.by);
                return Err(format!(
                    "{id:?} {campaign:?}: total {total} on page {page} by {by}, want {}: {want:?}",
                    want.len()
                ));
            }
            if read.rows.is_empty() {
                break;
            }
            for row in read.rows {
                let event = row.key.position.id.to_string();
                let is_joined = row.body.automation.as_ref().map(Id::as_str) == Some("au");
                if matches!(id.subject, Subject::Contact(_))
                    && is_joined == self.plan.waiting.contains(&event)
                {
                    return Err(format!("{id:?} {campaign:?}: {event} is joined: {is_joined}"));
                }
                got.push((row.key.position.at.0, event, row.key.event_type as u8));
            }
        }
        if !got.iter().eq(want.iter().copied()) {
            return Err(format!("{id:?} {campaign:?} by {limit}: rows {got:?}, want {want:?}"));
        }
        Ok(())
    }

    /// At every level the numbers are those of the rows, as far as those are kept.
    async fn check_tree(&self, id: &TimelineId) -> Result<(), String> {
        let error = |what: String| format!("{id:?}: {what}");
        let Some(root) = self.store.read_tallies(id, &[ROOT_CELL]).await.unwrap().remove(0) else {
            return Ok(());
        };
        let Some(root) = Root::read(&root.bytes).map_err(|damaged| error(damaged.to_string()))? else {
            return Ok(());
        };
        for (at, entry) in root.entries.iter().enumerate() {
            let stored = self.store.read_tallies(id, &[entry.cell]).await.unwrap().remove(0);
            let stored = stored.ok_or_else(|| error("node missing".into()))?;
            let node = Node::decode(&stored.bytes).map_err(|damaged| error(damaged.to_string()))?;
            // An earlier owner's late write may have left another node here, as it is: whoever reads it counts its rows.
            if node.span != root.entry_span(at) {
                continue;
            }
            // Of what has expired such a write may count more than the root does: pages are cut before that.
            let may_have_expired = root.entry_span(at).from < self.kept().from;
            let is_more = node.counts().all() > entry.counts.all() && may_have_expired;
            if node.counts() != entry.counts && !is_more {
                return Err(error(format!("node {} is not what the root says", entry.cell)));
            }
            for (leaf, held) in node.leaves.iter().enumerate() {
                let span = node.leaf_span(leaf);
                // Of those that have expired some are gone, and their numbers stay until their owner comes by.
                if self.plan.expires && !self.kept().covers(&span) {
                    continue;
                }
                let mut keys = BTreeSet::new();
                for part in &entry.parts {
                    let rows =
                        self.store.read_rows(id, *part, TypeSet::ALL, &span, Columns::Keys, usize::MAX);
                    keys.extend(rows.await.unwrap().into_iter().map(|row| row.key));
                }
                if Counts::of(&keys) != held.counts {
                    return Err(error(format!(
                        "leaf {leaf} of node {} counts {:?}",
                        entry.cell, held.counts
                    )));
                }
            }
        }
        Ok(())
    }

    async fn read(&self, id: &TimelineId, request: &PageRequest) -> Result<Page, StoreError> {
        read_page_by(self.trees, self.store, id, request).await
    }

    /// When all has expired nothing shows, nothing stands in the store, and everything exists.
    async fn check_expired(&self) -> Result<(), String> {
        // Where a writer's clock was behind, what it wrote lives so much longer.
        let end = NEWEST.plus_ms(RETENTION_MS + DAY_MS + SKEW_MAX_MS);
        self.sim.jump_ms(end.0 - self.sim.now().0 + 1);
        for id in &self.plan.known {
            let request =
                PageRequest { types: TypeSet::ALL, span: self.kept(), campaign: None, offset: 0, limit: 10 };
            let read = self.read(id, &request).await.map_err(|error| error.chain().to_string())?;
            if read.total != 0 || !read.rows.is_empty() || !self.store.is_known(id).await.unwrap() {
                return Err(format!("{id:?}: {} rows when all has expired", read.total));
            }
        }
        match self.store.living_rows().first() {
            Some((id, key)) => Err(format!("{id:?}: {key:?} lives longer than it should")),
            None => Ok(()),
        }
    }
}
