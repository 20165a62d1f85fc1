//! The outcomes that are kept, a file a phase.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::report::{Kept, machine};

/// The outcomes in a folder.
pub(super) struct KeptOutcomes {
    folder: PathBuf,
    by_phase: BTreeMap<String, Kept>,
}

impl KeptOutcomes {
    /// Those in `folder`, which need not be there yet.
    pub(super) fn open(folder: &Path) -> anyhow::Result<KeptOutcomes> {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        let mut by_phase = BTreeMap::new();
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                let read = serde_json::from_slice::<Kept>(&fs::read(&path)?);
                let kept = read.with_context(|| {
                    format!("{} is of another version of this program: remove it", path.display())
                })?;
                by_phase.insert(kept.phase.clone(), kept);
            }
        }
        Ok(KeptOutcomes { folder: folder.to_owned(), by_phase })
    }

    /// Whether `phase` was measured at `commit`, and that tells all of the program. What was measured at another is shown until it is
    /// measured again.
    pub(super) fn contains(&self, phase: &str, commit: &str) -> bool {
        let kept = self.by_phase.get(phase);
        kept.is_some_and(|kept| kept.commit == commit && !commit.ends_with(machine::WITH_CHANGES))
    }

    /// All of them.
    pub(super) fn all(&self) -> &BTreeMap<String, Kept> {
        &self.by_phase
    }

    /// Keeps one, in place of an earlier one. It is there whole or not at all.
    pub(super) fn keep(&mut self, kept: Kept) -> anyhow::Result<()> {
        let path = self.folder.join(format!("{}.json", kept.phase));
        let unfinished = path.with_extension("unfinished");
        fs::write(&unfinished, serde_json::to_vec_pretty(&kept)?)?;
        fs::rename(&unfinished, &path)?;
        self.by_phase.insert(kept.phase.clone(), kept);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Outcome;
    use crate::report::goals::Goal;

    #[test]
    fn what_is_kept_is_there_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut outcome = Outcome::default();
        outcome.measured(Goal::Decode, 0.7, "");
        let kept = Kept {
            phase: "decode".to_owned(),
            finished: "now".to_owned(),
            commit: "abc".to_owned(),
            is_quick: true,
            seconds: 1.5,
            outcome,
        };
        KeptOutcomes::open(folder.path()).expect("opens").keep(kept.clone()).expect("keeps");
        let mut again = KeptOutcomes::open(folder.path()).expect("opens");
        assert_eq!(again.all()["decode"], kept);
        assert!(again.contains("decode", "abc"));
        assert!(!again.contains("pages", "abc") && !again.contains("decode", "abd"));
        let dirty = format!("abc{}", machine::WITH_CHANGES);
        again.keep(Kept { commit: dirty.clone(), ..again.all()["decode"].clone() }).expect("keeps");
        assert!(!again.contains("decode", &dirty), "of what changes there were nothing is known");
    }
}
