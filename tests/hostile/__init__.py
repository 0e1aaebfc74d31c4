"""Files that would run, hang, flood, write or inject when they are opened: small generators by kind."""
