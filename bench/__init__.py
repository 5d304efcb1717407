"""Problems x peers: exact Hessians, compared for agreement first and timed after."""
