/* theme.js - light or dark, before anything is painted. */
"use strict";
try {
  const theme = localStorage.getItem("paceline-theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch { /* no storage: as the system says */ }
