"""Sequential recommendation: SIGMA, SASRec and BERT4Rec."""
