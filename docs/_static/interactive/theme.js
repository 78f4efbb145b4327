/* Light or dark: as chosen on the site (which remembers it under "theme"), else as the system prefers. */
"use strict";

const Theme = (() => {
  const stored = () => {
    try {
      return localStorage.getItem("theme");
    } catch {
      return null; // opened as a file, or storage is off
    }
  };
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (stored() === "dark" ? true : stored() === "light" ? false : system.matches);
  const apply = () => {
    document.documentElement.dataset.theme = isDark() ? "dark" : "light";
  };
  const toggle = () => {
    try {
      localStorage.setItem("theme", isDark() ? "light" : "dark");
    } catch {
      document.documentElement.dataset.theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
      return;
    }
    apply();
  };
  apply();
  system.addEventListener("change", apply);
  addEventListener("storage", apply); // the site's own switch, when this page stands in one of its pages
  return { toggle, isDark: () => document.documentElement.dataset.theme === "dark" };
})();
