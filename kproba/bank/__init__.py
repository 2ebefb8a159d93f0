"""The prototype bank, and its combination with the network.

`settings`, `feature_maps`, `moments`, `bank` and `build` hold the class statistics;
`decision` and `fusion` combine them with the network. Evaluation and prediction
(`predictor`), the teacher (`teacher`) and the pseudo labels (`kproba.methods`) use this
one combination. `description` lists the files that a step predicts with.
"""
