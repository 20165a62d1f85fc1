//! Random histories on the embedded store: what `backstamp dev` answers is what the model says, kills or not.

mod dev_model {
    mod dev;
    mod histories;
    mod kills;
}
